//! `#[transition("name/version", ...)]`: a struct that is the arguments of a function of the chain. `#[event("name")]`:
//! one that is what happened.

use crate::{codec, paths};
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::{
    Attribute, Data, DeriveInput, Error, Expr, ExprArray, ExprLit, Ident, Lit, LitInt, LitStr, Result, Token, bracketed,
};

/// What stands between the parentheses.
pub(crate) struct Arguments {
    name: String,
    version: u32,
    needs: Vec<Expr>,
    context: Vec<Ident>,
    gas: Option<u64>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let text: LitStr = input.parse()?;
        let (name, version) = split(&text)?;
        let mut out = Self { name, version, needs: Vec::new(), context: Vec::new(), gas: None };
        let mut said = Vec::new();
        while !input.is_empty() {
            input.parse::<Token![,]>()?;
            if input.is_empty() {
                break;
            }
            let key: Ident = input.parse()?;
            input.parse::<Token![=]>()?;
            if said.contains(&key) {
                return Err(Error::new_spanned(
                    &key,
                    format!("`{key}` is said once: several stand in a list, `[a, b]`"),
                ));
            }
            said.push(key.clone());
            match key.to_string().as_str() {
                "needs" => {
                    out.needs = match input.parse()? {
                        Expr::Array(ExprArray { elems, .. }) => elems.into_iter().collect(),
                        one => vec![one],
                    };
                    // Others are constants, which are checked where they are made.
                    for need in &out.needs {
                        if let Expr::Lit(ExprLit { lit: Lit::Str(text), .. }) = need {
                            plain_name(text, &text.value())?;
                        }
                    }
                }
                "context" => out.context = contexts(input)?,
                "gas" => out.gas = Some(input.parse::<LitInt>()?.base10_parse()?),
                _ => return Err(Error::new_spanned(key, "a transition knows `needs`, `context` and `gas`")),
            }
        }
        Ok(out)
    }
}

/// Cuts `social.form_alliance/1` at its slash.
fn split(text: &LitStr) -> Result<(String, u32)> {
    let whole = text.value();
    let wrong =
        || Error::new_spanned(text, "a function is named like \"social.form_alliance/1\": name, slash, version");
    let (name, version) = whole.rsplit_once('/').ok_or_else(wrong)?;
    plain_name(text, name)?;
    // One name for one version: 01 would be a second.
    let number: u32 = version.parse().map_err(|_| wrong())?;
    if number.to_string() != version {
        return Err(wrong());
    }
    Ok((name.to_owned(), number))
}

fn plain_name(at: &LitStr, name: &str) -> Result<()> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(Error::new_spanned(at, "a name is 1 to 64 of a-z, 0-9, '_' and '.'"));
    }
    Ok(())
}

fn contexts(input: ParseStream<'_>) -> Result<Vec<Ident>> {
    let named: Vec<Ident> = if input.peek(syn::token::Bracket) {
        let list;
        bracketed!(list in input);
        Punctuated::<Ident, Token![,]>::parse_terminated(&list)?.into_iter().collect()
    } else {
        vec![input.parse()?]
    };
    let mut out = Vec::new();
    for ident in named {
        match ident.to_string().as_str() {
            "none" => {}
            "height" | "time" | "random" => out.push(ident),
            _ => return Err(Error::new_spanned(ident, "a context is `none`, `height`, `time` or `random`")),
        }
    }
    Ok(out)
}

/// `Encode` and `Decode` for the item, and the item without what was said to those two alone.
fn encoded(item: &DeriveInput) -> Result<(TokenStream, DeriveInput)> {
    if codec::shapeless(&item.attrs)? {
        return Err(Error::new_spanned(&item.ident, "what a chain is told or tells says how it is encoded"));
    }
    let (encode, decode) = (codec::encode(item)?, codec::decode(item)?);
    let mut item = item.clone();
    // A derive below reads it, too.
    let is_key = |attribute: &Attribute| {
        attribute.path().is_ident("derive") && attribute.to_token_stream().to_string().contains("OrderedKey")
    };
    if !item.attrs.iter().any(is_key) {
        let others = |attribute: &Attribute| !attribute.path().is_ident("codec");
        item.attrs.retain(others);
        if let Data::Enum(data) = &mut item.data {
            data.variants.iter_mut().for_each(|variant| variant.attrs.retain(others));
        }
    }
    Ok((quote!(#encode #decode), item))
}

pub(crate) fn transition(arguments: Arguments, item: &DeriveInput) -> Result<TokenStream> {
    let krate = paths::execution();
    let Arguments { name, version, needs, context, gas } = arguments;
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, "a transition has no parameters: it is one function"));
    }
    let ident = &item.ident;
    let (height, time, random) = (
        context.iter().any(|c| c == "height"),
        context.iter().any(|c| c == "time"),
        context.iter().any(|c| c == "random"),
    );
    let gas = gas.map_or_else(|| quote!(u64::MAX), |gas| gas.to_token_stream());
    let (encoded, item) = encoded(item)?;
    Ok(quote! {
        #item
        #encoded

        #[automatically_derived]
        impl #krate::Function for #ident {
            const NAME: &'static str = #name;
            const VERSION: u32 = #version;
            const CONTEXT: #krate::ContextUse =
                #krate::ContextUse { height: #height, time: #time, random: #random };
            const GAS_MAX: u64 = #gas;
            const BUILT: #krate::Built = {
                #[allow(clippy::arithmetic_side_effects)]
                fn add(a: u8, b: u8) -> u8 {
                    a + b
                }
                #krate::Built { unwinds: ::core::cfg!(panic = "unwind"), add }
            };
            fn needs() -> ::std::vec::Vec<#krate::Capability> {
                ::std::vec![#(#krate::Capability::from(#needs)),*]
            }
        }
    })
}

pub(crate) fn event(name: &LitStr, item: &DeriveInput) -> Result<TokenStream> {
    let krate = paths::execution();
    let ident = &item.ident;
    plain_name(name, &name.value())?;
    if !item.generics.params.is_empty() {
        return Err(Error::new_spanned(&item.generics, "an event has no parameters: it is one thing that happened"));
    }
    let (encoded, item) = encoded(item)?;
    Ok(quote! {
        #item
        #encoded

        #[automatically_derived]
        impl #krate::Event for #ident {
            const NAME: &'static str = #name;
        }
    })
}
