//! `World`: a struct whose fields are namespaces.

use crate::paths;
use proc_macro2::TokenStream;
use quote::quote;
use syn::{Data, DeriveInput, Error, Fields, Result};

pub(crate) fn world(input: &DeriveInput) -> Result<TokenStream> {
    let krate = paths::execution();
    let Data::Struct(data) = &input.data else {
        return Err(Error::new_spanned(&input.ident, "a world is a struct with a field for each namespace"));
    };
    let Fields::Named(fields) = &data.fields else {
        return Err(Error::new_spanned(&input.ident, "a world names its namespaces: `social: Social`"));
    };
    if !input.generics.params.is_empty() {
        return Err(Error::new_spanned(&input.generics, "a world has no parameters: it is one place in the state"));
    }
    let name = &input.ident;
    let labels: Vec<_> = fields.named.iter().map(|field| &field.ident).collect();
    let types: Vec<_> = fields.named.iter().map(|field| &field.ty).collect();
    Ok(quote! {
        const _: () = #krate::each_once(&[#(<#types as #krate::Space>::NAME),*]);

        #[automatically_derived]
        impl #krate::World for #name {
            fn bind(handle: &#krate::Handle) -> Self {
                Self { #(#labels: <#types as #krate::Space>::bind(handle)),* }
            }
            fn spaces() -> ::std::vec::Vec<#krate::SpaceInfo> {
                ::std::vec![#(<#types as #krate::Space>::info()),*]
            }
        }
    })
}
