//! `#[namespace("name")]`: a struct whose fields are collections, each under a prefix of its own.

use crate::paths;
use proc_macro2::{Span, TokenStream};
use quote::{quote, quote_spanned};
use std::collections::BTreeSet;
use syn::ext::IdentExt;
use syn::spanned::Spanned;
use syn::{Error, Fields, ItemStruct, LitStr, Result};

pub(crate) fn namespace(name: &LitStr, mut item: ItemStruct) -> Result<TokenStream> {
    let text = name.value();
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-');
    // spec: TREE-1. Checked again when the world is bound; here the compiler can point at it.
    if text.is_empty() || text.len() > 32 || !text.bytes().all(plain) {
        return Err(Error::new_spanned(name, "a namespace is 1 to 32 of a-z, 0-9, '_', '.' and '-'"));
    }
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, "a namespace has no parameters: it is one place in the state"));
    }
    let Fields::Named(fields) = &mut item.fields else {
        return Err(Error::new_spanned(&item.ident, "a namespace names its collections: `alliances: Map<..>`"));
    };

    let (mut labels, mut types, mut places) = (Vec::new(), Vec::new(), Vec::new());
    for field in &mut fields.named {
        let label = field.ident.clone();
        let mut place = label.as_ref().map(|label| label.unraw().to_string()).unwrap_or_default();
        let mut failed = None;
        field.attrs.retain(|attribute| {
            let ours = attribute.path().is_ident("at");
            if ours {
                match attribute.parse_args::<LitStr>() {
                    Ok(at) => place = at.value(),
                    Err(error) => failed = Some(error),
                }
            }
            !ours
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if !place.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') || place.len() > 64 {
            return Err(Error::new_spanned(&field.ident, "a place is at most 64 of A-Z, a-z, 0-9 and '_'"));
        }
        labels.push(label);
        types.push(field.ty.clone());
        places.push(place);
    }
    if places.len() > 1 && places.iter().any(String::is_empty) {
        return Err(Error::new_spanned(name, "a collection at \"\" has the whole namespace and stands alone"));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = places.iter().find(|place| !seen.insert(*place)) {
        return Err(Error::new_spanned(name, format!("two collections at \"{twice}\"")));
    }

    let krate = paths::execution();
    let ident = &item.ident;
    // Told where the type stands.
    let sound = types.iter().zip(&places).map(|(of, place)| {
        let span = of.span().resolved_at(Span::call_site());
        let whole = place
            .is_empty()
            .then(|| quote_spanned!(span=> const _: () = #krate::whole(<#of as #krate::Collection>::HOLDS_ITS_PLACE);));
        quote_spanned!(span=> const _: () = <#of as #krate::Collection>::SOUND; #whole)
    });
    Ok(quote! {
        #item

        #(#sound)*

        #[automatically_derived]
        impl #krate::Space for #ident {
            const NAME: &'static str = #name;
            fn bind(handle: &#krate::Handle) -> Self {
                let space = handle.space(Self::NAME);
                Self { #(#labels: #krate::Collection::bind(handle, &space, #places)),* }
            }
            fn info() -> #krate::SpaceInfo {
                #krate::SpaceInfo::of::<Self>(::std::vec![
                    #((#places, <#types as #krate::Collection>::layout())),*
                ])
            }
        }

        #[automatically_derived]
        impl #krate::World for #ident {
            fn bind(handle: &#krate::Handle) -> Self {
                <Self as #krate::Space>::bind(handle)
            }
            fn spaces() -> ::std::vec::Vec<#krate::SpaceInfo> {
                ::std::vec![<Self as #krate::Space>::info()]
            }
        }
    })
}
