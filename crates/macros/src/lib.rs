//! Derives and attributes of Keelstone: what an application writes above its types.
//!
//! Everything here turns a declaration into implementations of traits of `keelstone-codec` and
//! `keelstone-execution`; nothing is decided at run time. The names the generated code uses are found by looking at
//! the manifest of the crate that is being compiled: an application that depends on `keelstone` alone gets paths
//! through the facade, a crate of the engine itself gets the crate it depends on.
//!
//! Layout of what the codec derives write: `spec/codec.md`. Place of a collection's keys: `spec/chain.md`, EXEC-18.
#![forbid(unsafe_code)]

mod codec;
mod key;
mod namespace;
mod paths;
mod transition;
mod world;

use proc_macro::TokenStream;
use syn::parse_macro_input;

/// Implements `Encode` and `Describe`: fields one after another; an enum writes one tag byte first.
///
/// Tags count from 0 in the order of declaration, or are said with `#[codec(tag = n)]`, and ascend. Types whose bytes could
/// differ between machines (floats, `usize`, hash maps, clocks) do not implement `Encode`, so state that holds them
/// does not compile (spec: CODEC-2). `#[codec(shapeless)]` on the type leaves `Describe` out.
#[proc_macro_derive(Encode, attributes(codec))]
pub fn encode(input: TokenStream) -> TokenStream {
    finish(codec::encode(&parse_macro_input!(input)))
}

/// Implements `Decode`, the strict inverse of the derived `Encode`: an unknown tag is refused.
#[proc_macro_derive(Decode, attributes(codec))]
pub fn decode(input: TokenStream) -> TokenStream {
    finish(codec::decode(&parse_macro_input!(input)))
}

/// Implements `OrderedKey`: fields one after another, each ending itself, so that keys sort as values do.
///
/// An enum writes its tag first; tags ascend in the order of declaration, because that is the order of `Ord`. A part that
/// does not end itself stands last.
#[proc_macro_derive(OrderedKey, attributes(codec))]
pub fn ordered_key(input: TokenStream) -> TokenStream {
    finish(key::ordered_key(&parse_macro_input!(input)))
}

/// Makes a struct of namespaces the world that transitions see. Each field is a `#[namespace]` struct.
#[proc_macro_derive(World)]
pub fn world(input: TokenStream) -> TokenStream {
    finish(world::world(&parse_macro_input!(input)))
}

/// Makes a struct of collections a namespace of the state: `#[namespace("social")]`.
///
/// Each field's keys begin with its name, so fields may be added and reordered without moving what is stored. A
/// field that was renamed keeps its place with `#[at("old_name")]`; `#[at("")]` on the only field of a namespace
/// gives it all keys, raw. A namespace alone is also a world.
#[proc_macro_attribute]
pub fn namespace(arguments: TokenStream, item: TokenStream) -> TokenStream {
    finish(namespace::namespace(&parse_macro_input!(arguments), parse_macro_input!(item)))
}

/// Makes a struct the arguments of a function of the chain: `#[transition("social.form_alliance/1")]`.
///
/// The text is the name and, after the slash, the version; both are hashed into the function's identity, so a
/// changed behaviour takes a new version. Further arguments, in any order:
///
/// * `needs = "social.ally"`, or `needs = [A, B]`, or any expression that is a `Capability`: what a session must hold;
/// * `context = none | height | time | random`, or a list of them: what of the block the function may ask for. Bundles
///   that use any but `none` cannot carry expectations (spec: EXEC-4);
/// * `gas = 100_000`: the most one call may use, if less than what the bundle has left.
///
/// The attribute also derives `Encode`, `Decode` and `Describe` for the struct.
#[proc_macro_attribute]
pub fn transition(arguments: TokenStream, item: TokenStream) -> TokenStream {
    finish(transition::transition(parse_macro_input!(arguments), &parse_macro_input!(item)))
}

/// Makes a struct an event: `#[event("social.alliance_formed")]`. Derives `Encode`, `Decode` and `Describe` for it.
#[proc_macro_attribute]
pub fn event(arguments: TokenStream, item: TokenStream) -> TokenStream {
    finish(transition::event(&parse_macro_input!(arguments), &parse_macro_input!(item)))
}

fn finish(result: syn::Result<proc_macro2::TokenStream>) -> TokenStream {
    result.unwrap_or_else(syn::Error::into_compile_error).into()
}
