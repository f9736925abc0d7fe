//! `Encode`, `Decode` and `Describe`: fields in order, enums behind one tag byte.

use crate::paths;
use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DataEnum, DeriveInput, Error, Expr, ExprLit, ExprUnary, Field, Fields, Generics, Ident, Lit,
    LitInt, Result, UnOp, Variant, parse_quote,
};

/// A struct, or one variant of an enum: how to take it apart and put it together.
pub(crate) struct Parts<'a> {
    fields: &'a Fields,
    /// One local variable for each field.
    pub(crate) names: Vec<Ident>,
}

impl<'a> Parts<'a> {
    pub(crate) fn new(fields: &'a Fields) -> Result<Self> {
        let attributes = fields.iter().flat_map(|field| &field.attrs);
        if let Some(attribute) = attributes.into_iter().find(|attribute| attribute.path().is_ident("codec")) {
            return Err(Error::new_spanned(attribute, "a field is encoded as its type says, and knows no attribute"));
        }
        // Standing where the field's type stands, so that the compiler points there if the type lacks a trait.
        let name = |(index, field): (usize, &Field)| {
            format_ident!("field_{index}", span = field.ty.span().resolved_at(Span::call_site()))
        };
        Ok(Self { fields, names: fields.iter().enumerate().map(name).collect() })
    }

    /// `{ a: field_0, b: field_1 }`, `(field_0, field_1)`, or nothing: both a pattern and an expression.
    pub(crate) fn body(&self) -> TokenStream {
        let names = &self.names;
        match self.fields {
            Fields::Named(fields) => {
                let labels = fields.named.iter().map(|field| &field.ident);
                quote!({ #(#labels: #names),* })
            }
            Fields::Unnamed(_) => quote!((#(#names),*)),
            Fields::Unit => quote!(),
        }
    }

    fn shape(&self, krate: &TokenStream) -> TokenStream {
        let types: Vec<_> = self.fields.iter().map(|field| &field.ty).collect();
        match self.fields {
            Fields::Named(fields) => {
                let labels = fields.named.iter().filter_map(|field| field.ident.as_ref());
                let labels = labels.map(|ident| ident.unraw().to_string());
                quote!(#krate::Shape::Record(::std::vec![
                    #((#labels, <#types as #krate::Describe>::shape())),*
                ]))
            }
            Fields::Unnamed(_) if types.len() == 1 => quote!(#(<#types as #krate::Describe>::shape())*),
            Fields::Unnamed(_) => quote!(#krate::Shape::Tuple(::std::vec![
                #(<#types as #krate::Describe>::shape()),*
            ])),
            Fields::Unit => quote!(#krate::Shape::Unit),
        }
    }
}

/// The variants of an enum with their tags, which ascend.
///
/// So do the numbers of its variants, which are what it says, and one more than the one before, from 0 on, where it says
/// nothing. A derived `Ord` goes by those; a derive cannot see whether there is such an `Ord`. Tools that know no more than the encoding put the
/// elements of a set in the order of the tags, and keys sort by them: all of these are one order.
pub(crate) fn tagged(data: &DataEnum) -> Result<Vec<(u8, &Variant)>> {
    let (mut next, mut next_number) = (0u16, 0i128);
    let mut last_number = None;
    let mut out = Vec::new();
    if data.variants.is_empty() {
        return Err(Error::new(data.enum_token.span, "an enum without variants has no values to encode"));
    }
    for variant in &data.variants {
        let tag = match explicit_tag(&variant.attrs)? {
            Some(tag) => tag,
            None => u8::try_from(next).map_err(|_| Error::new_spanned(variant, "an enum has at most 256 variants"))?,
        };
        if u16::from(tag) < next {
            return Err(Error::new_spanned(variant, "tags ascend, or values and their encodings sort differently"));
        }
        next = u16::from(tag) + 1;
        let number = variant.discriminant.as_ref().map_or(Ok(next_number), |(_, number)| literal(number))?;
        if last_number.is_some_and(|last| number < last) {
            return Err(Error::new_spanned(variant, "numbers of variants ascend: `Ord` goes by them, tags do not"));
        }
        last_number = Some(number);
        // Where there is none behind it, the compiler refuses the enum.
        next_number = number.saturating_add(1);
        out.push((tag, variant));
    }
    Ok(out)
}

/// The number a variant is given, which has to be there to be read.
fn literal(number: &Expr) -> Result<i128> {
    match number {
        Expr::Lit(ExprLit { lit: Lit::Int(int), .. }) => int.base10_parse(),
        Expr::Unary(ExprUnary { op: UnOp::Neg(_), expr, .. }) => literal(expr).map(|found| -found),
        _ => {
            Err(Error::new_spanned(number, "the number of a variant is written out, so that its order can be checked"))
        }
    }
}

fn explicit_tag(attributes: &[Attribute]) -> Result<Option<u8>> {
    let mut tag = None;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("codec")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("tag") {
                return Err(meta.error("a variant knows `tag = n`"));
            }
            tag = Some(meta.value()?.parse::<LitInt>()?.base10_parse()?);
            Ok(())
        })?;
    }
    Ok(tag)
}

/// Whether a type says that it has no shape. Whatever else it says is refused.
pub(crate) fn shapeless(attributes: &[Attribute]) -> Result<bool> {
    let mut found = false;
    for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("codec")) {
        attribute.parse_nested_meta(|meta| {
            if !meta.path.is_ident("shapeless") {
                return Err(meta.error("a type knows `shapeless`"));
            }
            found = true;
            Ok(())
        })?;
    }
    Ok(found)
}

/// The generics with `bound` put on every type parameter.
pub(crate) fn bounded(generics: &Generics, bound: &TokenStream) -> Generics {
    let mut generics = generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(parse_quote!(#bound));
    }
    generics
}

pub(crate) fn no_union(span: Span) -> Error {
    Error::new(span, "a union has no canonical encoding")
}

pub(crate) fn encode(input: &DeriveInput) -> Result<TokenStream> {
    let krate = paths::private();
    let name = &input.ident;
    let (write, shape) = match &input.data {
        Data::Struct(data) => {
            let parts = Parts::new(&data.fields)?;
            let (names, body) = (&parts.names, parts.body());
            let write = quote! {
                let Self #body = self;
                #(#krate::Encode::encode(#names, out);)*
            };
            (write, parts.shape(&krate))
        }
        Data::Enum(data) => {
            let (mut arms, mut shapes) = (Vec::new(), Vec::new());
            for (tag, variant) in tagged(data)? {
                let parts = Parts::new(&variant.fields)?;
                let (ident, names, body) = (&variant.ident, &parts.names, parts.body());
                let (label, shape) = (ident.unraw().to_string(), parts.shape(&krate));
                arms.push(quote!(Self::#ident #body => {
                    out.push(#tag);
                    #(#krate::Encode::encode(#names, out);)*
                }));
                shapes.push(quote!(#krate::Variant { tag: #tag, name: #label, shape: #shape }));
            }
            (quote!(match self { #(#arms)* }), quote!(#krate::Shape::Choice(::std::vec![#(#shapes),*])))
        }
        Data::Union(data) => return Err(no_union(data.union_token.span)),
    };
    let generics = bounded(&input.generics, &quote!(#krate::Encode));
    let (implementation, types, clause) = generics.split_for_impl();
    let mut out = quote! {
        #[automatically_derived]
        impl #implementation #krate::Encode for #name #types #clause {
            fn encode(&self, out: &mut ::std::vec::Vec<u8>) {
                let _ = &out;
                #write
            }
        }
    };
    if !shapeless(&input.attrs)? {
        let generics = bounded(&input.generics, &quote!(#krate::Describe));
        let (implementation, types, clause) = generics.split_for_impl();
        out.extend(quote! {
            #[automatically_derived]
            impl #implementation #krate::Describe for #name #types #clause {
                fn shape() -> #krate::Shape {
                    #krate::Shape::of_type(::core::any::type_name::<Self>(), || #shape)
                }
            }
        });
    }
    Ok(out)
}

pub(crate) fn decode(input: &DeriveInput) -> Result<TokenStream> {
    let krate = paths::private();
    let name = &input.ident;
    let read = match &input.data {
        Data::Struct(data) => {
            let parts = Parts::new(&data.fields)?;
            let (names, body) = (&parts.names, parts.body());
            quote! {
                #(let #names = #krate::Decode::decode(input)?;)*
                ::std::result::Result::Ok(Self #body)
            }
        }
        Data::Enum(data) => {
            let mut arms = Vec::new();
            for (tag, variant) in tagged(data)? {
                let parts = Parts::new(&variant.fields)?;
                let (ident, names, body) = (&variant.ident, &parts.names, parts.body());
                arms.push(quote!(#tag => {
                    #(let #names = #krate::Decode::decode(input)?;)*
                    ::std::result::Result::Ok(Self::#ident #body)
                }));
            }
            let what = name.unraw().to_string();
            quote! {
                match input.byte()? {
                    #(#arms)*
                    found => ::std::result::Result::Err(#krate::DecodeError::UnknownTag {
                        what: #what,
                        found: ::core::convert::From::from(found),
                    }),
                }
            }
        }
        Data::Union(data) => return Err(no_union(data.union_token.span)),
    };
    shapeless(&input.attrs)?;
    let generics = bounded(&input.generics, &quote!(#krate::Decode));
    let (implementation, types, clause) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #implementation #krate::Decode for #name #types #clause {
            fn decode(
                input: &mut #krate::Reader<'_>,
            ) -> ::std::result::Result<Self, #krate::DecodeError> {
                let _ = &input;
                #read
            }
        }
    })
}
