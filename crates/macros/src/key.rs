//! `OrderedKey`: fields in order, enums behind a tag that ascends with the declaration.

use crate::codec::{Parts, bounded, no_union, tagged};
use crate::paths;
use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Result};

pub(crate) fn ordered_key(input: &DeriveInput) -> Result<TokenStream> {
    let krate = paths::private();
    let name = &input.ident;
    let (write, read) = match &input.data {
        Data::Struct(data) => {
            let parts = Parts::new(&data.fields);
            let (names, body) = (&parts.names, parts.body());
            let write = quote! {
                let Self #body = self;
                #(#krate::OrderedKey::encode_key(#names, out);)*
            };
            let read = quote! {
                #(let #names = #krate::OrderedKey::decode_key(input)?;)*
                ::std::result::Result::Ok(Self #body)
            };
            (write, read)
        }
        Data::Enum(data) => {
            let variants = tagged(data)?;
            if let Some(pair) = variants.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
                return Err(Error::new_spanned(pair[1].1, "tags of a key must ascend, or keys sort unlike values"));
            }
            let (mut writes, mut reads) = (Vec::new(), Vec::new());
            for (tag, variant) in variants {
                let parts = Parts::new(&variant.fields);
                let (ident, names, body) = (&variant.ident, &parts.names, parts.body());
                writes.push(quote!(Self::#ident #body => {
                    out.push(#tag);
                    #(#krate::OrderedKey::encode_key(#names, out);)*
                }));
                reads.push(quote!(#tag => {
                    #(let #names = #krate::OrderedKey::decode_key(input)?;)*
                    ::std::result::Result::Ok(Self::#ident #body)
                }));
            }
            let what = name.to_string();
            let read = quote! {
                match <u8 as #krate::OrderedKey>::decode_key(input)? {
                    #(#reads)*
                    found => ::std::result::Result::Err(#krate::DecodeError::UnknownTag {
                        what: #what,
                        found: ::core::convert::From::from(found),
                    }),
                }
            };
            (quote!(match self { #(#writes)* }), read)
        }
        Data::Union(data) => return Err(no_union(data.union_token.span)),
    };
    let generics = bounded(&input.generics, &quote!(#krate::OrderedKey));
    let (implementation, types, clause) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #implementation #krate::OrderedKey for #name #types #clause {
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
    })
}
