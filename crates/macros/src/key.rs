//! `OrderedKey`: fields in order, enums behind a tag that ascends with the declaration.

use crate::codec::{Parts, bounded, no_union, shapeless, tagged};
use crate::paths;
use proc_macro2::TokenStream;
use quote::quote;
use syn::ext::IdentExt;
use syn::{Data, DeriveInput, Fields, Result};

pub(crate) fn ordered_key(input: &DeriveInput) -> Result<TokenStream> {
    let krate = paths::private();
    let name = &input.ident;
    shapeless(&input.attrs)?;
    let ends = |fields: &Fields| {
        let types = fields.iter().map(|field| &field.ty);
        quote!(#krate::KeyEnd::of_parts(&[#(<#types as #krate::OrderedKey>::END),*]))
    };
    let (end, write, read) = match &input.data {
        Data::Struct(data) => {
            let parts = Parts::new(&data.fields)?;
            let (names, body) = (&parts.names, parts.body());
            let write = quote! {
                let Self #body = self;
                #(#krate::OrderedKey::encode_key(#names, out);)*
            };
            let read = quote! {
                #(let #names = #krate::OrderedKey::decode_key(input)?;)*
                ::std::result::Result::Ok(Self #body)
            };
            (ends(&data.fields), write, read)
        }
        Data::Enum(data) => {
            let variants = tagged(data)?;
            let (mut all_ends, mut writes, mut reads) = (Vec::new(), Vec::new(), Vec::new());
            for (tag, variant) in variants {
                let parts = Parts::new(&variant.fields)?;
                let (ident, names, body) = (&variant.ident, &parts.names, parts.body());
                all_ends.push(ends(&variant.fields));
                writes.push(quote!(Self::#ident #body => {
                    out.push(#tag);
                    #(#krate::OrderedKey::encode_key(#names, out);)*
                }));
                reads.push(quote!(#tag => {
                    #(let #names = #krate::OrderedKey::decode_key(input)?;)*
                    ::std::result::Result::Ok(Self::#ident #body)
                }));
            }
            let what = name.unraw().to_string();
            let read = quote! {
                match <u8 as #krate::OrderedKey>::decode_key(input)? {
                    #(#reads)*
                    found => ::std::result::Result::Err(#krate::DecodeError::UnknownTag {
                        what: #what,
                        found: ::core::convert::From::from(found),
                    }),
                }
            };
            let end = quote!(#krate::KeyEnd::of_variants(&[#(#all_ends),*]));
            (end, quote!(match self { #(#writes)* }), read)
        }
        Data::Union(data) => return Err(no_union(data.union_token.span)),
    };
    // Told where it is declared, if it can be known there.
    let checked = input.generics.params.is_empty();
    let checked = checked.then(|| quote!(const _: #krate::KeyEnd = <#name as #krate::OrderedKey>::END;));
    let generics = bounded(&input.generics, &quote!(#krate::OrderedKey));
    let (implementation, types, clause) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #implementation #krate::OrderedKey for #name #types #clause {
            const END: #krate::KeyEnd = #end;

            fn encode_key(&self, out: &mut ::std::vec::Vec<u8>) {
                let _ = &out;
                #write
            }
            fn decode_key(
                input: &mut #krate::KeyReader<'_>,
            ) -> ::std::result::Result<Self, #krate::DecodeError> {
                let _ = &input;
                #read
            }
        }

        #checked
    })
}
