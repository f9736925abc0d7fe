//! Bundles as clients send them, and sessions as the state holds them.

use crate::{Target, canonical};
use keelstone_codec::{Blob, ChainId, Encode, Hash, Height, StateHash};
use keelstone_execution::{Bundle, Capabilities, Capability, FunctionHash, Mode, Operation, PublicKey, Session};

pub(crate) const BUNDLE: Target = Target { name: "bundle", run: bundle, seeds: bundles };

fn bundle(input: &[u8]) -> bool {
    let Some(bundle) = canonical::<Bundle>(input) else { return canonical::<Operation>(input).is_some() };
    let (mode, operations) = (bundle.mode(), bundle.operations().to_vec());
    assert_eq!(Bundle::new(mode, operations).as_ref(), Ok(&bundle), "an accepted bundle breaks its own rule");
    true
}

fn bundles() -> Vec<Vec<u8>> {
    let plain = Operation {
        function: FunctionHash::of("social.form_alliance", 1),
        args: Blob::new(*b"arguments").expect("short"),
        expected_diff: None,
        expected_own_diff: None,
    };
    let expecting =
        Operation { expected_own_diff: Some(Hash([2; 32])), ..plain.clone() }.expecting(StateHash::default());
    let bundle = |mode, operations| Bundle::new(mode, operations).expect("one or two operations").to_bytes();
    vec![plain.to_bytes(), bundle(Mode::Sync, vec![plain.clone(), expecting]), bundle(Mode::Async, vec![plain])]
}

pub(crate) const SESSION: Target = Target { name: "session", run: session, seeds: sessions };

fn session(input: &[u8]) -> bool {
    canonical::<Session>(input).is_some()
}

fn sessions() -> Vec<Vec<u8>> {
    let chain = ChainId::new("Test-1").expect("a chain id");
    let root = Session::root(&chain, PublicKey(Hash([7; 32])));
    let capabilities = Capabilities::only([Capability::new("ally"), Capability::new("post")]).expect("two");
    let other = Session { capabilities, expires: Some(Height(9)), closed: true, ..root.clone() };
    vec![root.to_bytes(), other.to_bytes()]
}
