//! A chain that begins with the state of another: what its genesis says of it, and how the two come together.
//!
//! The state is not in the genesis file, which is JSON and read whole by every node; it comes from an archive that is
//! taken to be a stranger's, and the file says under which root every entry has to be proven. What the ledger keeps of the
//! old chain stays behind: it was signed, counted and linked under a name that is not this chain's.
//!
//! Rule: `spec/ledger.md`, GENESIS-4.

use crate::genesis::{FirstState, GenesisError};
use keelstone_codec::{ChainId, Height, Key, Namespace, Root};
use keelstone_execution::SYSTEM_NAMESPACES;
use keelstone_macros::{Decode, Encode};
use keelstone_tree::{Totals, Write};
use std::iter::Peekable;

/// Which state a chain begins with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
#[codec(shapeless)]
pub struct Inherited {
    /// The chain it is of.
    pub chain_id: ChainId,
    /// Its height there.
    pub height: Height,
    /// Its root, under the hasher of the new chain.
    pub root: Root,
    /// The entries of all of it.
    pub entries: u64,
    /// The bytes of their keys and values.
    pub bytes: u64,
}

/// Why an inherited state and a genesis do not come together.
#[derive(Debug, thiserror::Error)]
pub enum InheritError<E> {
    /// The genesis writes an entry that it inherits too. Whoever wrote it has to act.
    #[error(transparent)]
    Genesis(GenesisError),
    /// Whoever took the entries said so.
    #[error("{0}")]
    Taker(E),
}

/// Takes the next entry of the new state.
pub type Put<'a, E> = &'a mut dyn FnMut(&Namespace, &Key, &[u8]) -> Result<(), E>;

type Own<'f> = Box<dyn Iterator<Item = (&'f Namespace, &'f Write)> + 'f>;

/// The entries of a first state in their order: those that are inherited, and the genesis' own among them.
pub struct Inheriting<'f> {
    own: Peekable<Own<'f>>,
    left: Totals,
}

impl FirstState {
    /// Begins to put an inherited state, whose entries come in order, and the genesis' own entries into one order.
    #[must_use]
    pub fn inheriting(&self) -> Inheriting<'_> {
        let own: Own<'_> = Box::new(self.diff.iter());
        Inheriting { own: own.peekable(), left: Totals::default() }
    }
}

impl Inheriting<'_> {
    /// Takes the next entry of the old state, and hands on what it means for the new one.
    ///
    /// # Errors
    /// [`InheritError::Genesis`] for an entry that the genesis writes too, or what `put` says.
    // spec: GENESIS-4
    pub fn entry<E>(
        &mut self,
        namespace: &Namespace,
        key: &Key,
        value: &[u8],
        put: Put<'_, E>,
    ) -> Result<(), InheritError<E>> {
        if SYSTEM_NAMESPACES.contains(&namespace.as_str()) {
            self.left += Totals { count: 1, bytes: (key.len() + value.len()) as u64 };
            return Ok(());
        }
        let place = (namespace, key);
        while let Some((own, write)) = self.own.next_if(|(own, write)| (*own, &write.key) < place) {
            hand_on(own, write, put)?;
        }
        if self.own.peek().is_some_and(|(own, write)| (*own, &write.key) == place) {
            let (namespace, key) = (namespace.clone(), key.clone());
            return Err(InheritError::Genesis(GenesisError::Reserved { namespace, key }));
        }
        put(namespace, key, value).map_err(InheritError::Taker)
    }

    /// Hands on what comes after the last entry, and says what of the old state stays behind.
    ///
    /// # Errors
    /// What `put` says.
    pub fn finish<E>(self, put: Put<'_, E>) -> Result<Totals, InheritError<E>> {
        for (namespace, write) in self.own {
            hand_on(namespace, write, put)?;
        }
        Ok(self.left)
    }
}

fn hand_on<E>(namespace: &Namespace, write: &Write, put: Put<'_, E>) -> Result<(), InheritError<E>> {
    let value = write.value.as_ref().expect("the diff of a genesis is one to the empty state: it removes nothing");
    put(namespace, &write.key, value).map_err(InheritError::Taker)
}
