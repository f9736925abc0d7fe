//! What people write: arguments in JSON, and configuration files.

use crate::{Target, canonical};
use keelstone_codec::{Blob, BoundedSet, ChainId, Describe, Encode, Fixed, Hash, Height, Key, Namespace, Text};
use keelstone_node::{Config, arguments, shown};
use std::collections::BTreeMap;

type Arguments = ((bool, u8, u128, i64), (Fixed, Hash, Height), (Key, Namespace, ChainId), Collections);
type Collections = (Text<9>, Blob<9>, BTreeMap<String, Vec<u16>>, (BoundedSet<i8, 3>, Option<Box<u32>>));

pub(crate) const ARGUMENTS: Target = Target { name: "arguments", run: from_json, seeds: json };

/// JSON that fits a shape gives bytes that show as JSON which gives them again. The type itself may refuse more: a shape
/// knows no alphabets.
fn from_json(input: &[u8]) -> bool {
    let shape = Arguments::shape();
    let Ok(bytes) = arguments(&shape, input) else { return false };
    let again = shown(&shape, &bytes).expect("what was written has the shape");
    assert_eq!(arguments(&shape, again.as_bytes()).as_ref(), Ok(&bytes), "{again}");
    canonical::<Arguments>(&bytes).is_some()
}

fn json() -> Vec<Vec<u8>> {
    let fits = "within the limits of its type";
    let value: Arguments = (
        (true, 7, 1 << 90, -3),
        (Fixed::from_micros(-1_500_000), Hash([1; 32]), Height(4)),
        (Key::new(*b"k").expect(fits), Namespace::new("social").expect(fits), ChainId::new("Test-1").expect(fits)),
        (
            Text::new("tüt").expect(fits),
            Blob::new([0, 1]).expect(fits),
            BTreeMap::from([("a".to_owned(), vec![1, 2]), (String::new(), vec![])]),
            (BoundedSet::new([3, -1]).expect(fits), Some(Box::new(5))),
        ),
    );
    vec![shown(&Arguments::shape(), &value.to_bytes()).expect("a shape fits its type").into_bytes()]
}

pub(crate) const CONFIG: Target = Target { name: "config", run: config, seeds: configs };

/// A configuration that is accepted and written out again is the same configuration.
fn config(input: &[u8]) -> bool {
    let Ok(config) = Config::parse(input) else { return false };
    assert_eq!(Config::parse(config.to_toml().as_bytes()).expect("what is written reads back"), config);
    true
}

fn configs() -> Vec<Vec<u8>> {
    vec![Vec::new(), Config::default().to_toml().into_bytes()]
}
