//! Indexes: outside the state, made from it.

use crate::common::*;
use keelstone_execution::{Index, IndexError, PublicKey};

fn by_balance() -> Index<PublicKey, u64, u64> {
    Index::of::<Bank>("balances", |_, balance| vec![*balance]).unwrap()
}

/// spec: EXEC-14. Kept up block by block or made anew, an index says the same.
#[test]
fn an_index_kept_up_equals_one_made_anew() {
    let mut state = State::new();
    let mut kept = by_balance();
    for (to, amount) in [(1, 5), (2, 5), (3, 7), (1, 2), (4, 7), (2, 2)] {
        let finished = commit(&mut state, vec![mint(to, amount)]);
        kept.apply(&finished.changes).unwrap();
        let mut anew = by_balance();
        anew.rebuild(&state).unwrap();
        for balance in 0..10 {
            assert_eq!(kept.get(&balance), anew.get(&balance));
        }
        assert_eq!(kept.len(), anew.len());
    }
    assert_eq!(kept.get(&7).unwrap(), [1, 2, 3, 4].map(key));
}

#[test]
fn an_index_is_over_a_map_that_exists() {
    let nowhere = Index::<PublicKey, u64, u64>::of::<Bank>("balance", |_, _| vec![]);
    assert!(matches!(nowhere, Err(IndexError::NoSuchMap { space: "bank", .. })));
    let other_types = Index::<u64, u64, u64>::of::<Bank>("balances", |_, _| vec![]);
    assert!(matches!(other_types, Err(IndexError::NoSuchMap { .. })));
}
