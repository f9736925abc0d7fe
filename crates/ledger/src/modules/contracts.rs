//! Xian's contracts: their entries under their own names, and the currency counted as Xian counts it.
//!
//! Contract code is kept as data and not run. What the currency's contract does is done here by functions of the same
//! effect on the same entries: `currency.balances:<address>` and, for approvals, `currency.balances:<owner>:<spender>`.
//! An account's address is its public key in lower-case hexadecimal. Whoever holds the reserved capability
//! `contracts.patch` may set any entry, which is what Xian's state patches do.
//!
//! Rules: `spec/ledger.md`, XIAN-4, XIAN-7 and XIAN-8.

use crate::json::{JSON_DEPTH_MAX, Json};
use crate::xian::{Amount, EntryKey, NAME_LEN_MAX, Record};
use keelstone_codec::{BoundedList, Text};
use keelstone_execution::{Capability, Context, Denied, Draft, Map, RawKey, Transition, denied, ensure};
use keelstone_macros::{Decode, Encode, event, namespace, transition};

/// The reserved capability to set entries without running anything.
pub const PATCH: Capability = Capability::new("contracts.patch");
/// Most entries one patch sets.
pub const PATCHES_MAX: usize = 1_024;
/// Longest text of a patched value.
pub const PATCH_BYTES_MAX: usize = 1 << 20;

/// An address or the text of an amount.
pub type Word = Text<256>;

/// The namespace `contracts`: every entry under its own name, and nothing in front of it.
#[namespace("contracts")]
pub struct Contracts {
    /// Entries by [`EntryKey`].
    #[at("")]
    pub entries: Map<RawKey, Record>,
}

impl Contracts {
    /// The value of an entry.
    ///
    /// # Errors
    /// [`Denied`] for a name that no entry can have.
    pub fn value(&self, name: &str) -> Result<Option<Json>, Denied> {
        Ok(self.entries.get(&place(name)?)?.and_then(|record| record.value_of(name)))
    }

    /// Sets an entry, or removes it.
    fn set(&mut self, name: &str, value: Option<Json>) -> Result<(), Denied> {
        let place = place(name)?;
        match value {
            Some(value) => self.entries.insert(&place, &Record::entry(name, value))?,
            None => drop(self.entries.remove(&place)?),
        }
        Ok(())
    }

    fn amount(&self, name: &str) -> Result<Amount, Denied> {
        let value = self.value(name)?;
        Amount::from_value(value.as_ref()).map_err(|error| denied!("{name}: {error}"))
    }

    /// Takes an amount from one entry and adds it to another, one after the other, as the contract does.
    fn move_amount(&mut self, from: &str, to: &str, amount: &Amount) -> Result<(), Denied> {
        self.subtract(from, amount)?;
        let sum = self.amount(to)?.add(amount).map_err(|error| denied!("{to}: {error}"))?;
        self.set(to, Some(sum.to_value()))
    }

    fn subtract(&mut self, name: &str, amount: &Amount) -> Result<(), Denied> {
        let held = self.amount(name)?;
        ensure!(held.value() >= amount.value(), "{name} holds {}, which is less than {}", held.value(), amount.value());
        let left = held.sub(amount).map_err(|error| denied!("{name}: {error}"))?;
        self.set(name, Some(left.to_value()))
    }
}

fn place(name: &str) -> Result<RawKey, Denied> {
    let key = EntryKey::named(name).map_err(|error| denied!("{error}"))?;
    Ok(key.to_raw())
}

/// The entry of an address's balance.
///
/// # Errors
/// [`Denied`] for text that cannot be an address: `:` and `.` would make it the name of another entry.
pub fn balance_name(address: &str) -> Result<String, Denied> {
    ensure!(!address.is_empty(), "an address has at least one character");
    ensure!(!address.contains([':', '.']), "an address has no ':' and no '.'");
    Ok(format!("currency.balances:{address}"))
}

/// The entry that says how much of an owner's balance a spender may move.
fn approval_name(owner: &str, spender: &str) -> Result<String, Denied> {
    balance_name(spender)?;
    Ok(format!("{}:{spender}", balance_name(owner)?))
}

fn positive(amount: &Word) -> Result<Amount, Denied> {
    let amount = Amount::parse(amount).map_err(|error| denied!("amount: {error}"))?;
    ensure!(amount.value().is_positive(), "an amount is above zero, not {}", amount.value());
    Ok(amount)
}

/// Currency moved.
#[event("contracts.transferred")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transferred {
    /// From this address.
    pub from: Word,
    /// To this address.
    pub to: Word,
    /// So much.
    pub amount: Word,
}

/// A spender may move so much of an owner's balance.
#[event("contracts.approved")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    /// The owner.
    pub owner: Word,
    /// The spender.
    pub spender: Word,
    /// So much in all.
    pub amount: Word,
}

/// An entry was set without running anything.
#[event("contracts.patched")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patched {
    /// Its name.
    pub name: Text<NAME_LEN_MAX>,
    /// Whether it is gone.
    pub removed: bool,
    /// Why.
    pub comment: Text<256>,
}

fn address_of(cx: &Context) -> Word {
    Word::new(cx.sender().to_string()).expect("64 digits")
}

/// Moves currency from the sender's address.
#[transition("contracts.transfer/1", needs = "contracts.transfer")]
pub struct Transfer {
    /// To this address.
    pub to: Word,
    /// A decimal number; digits alone are an integer, as in Xian.
    pub amount: Word,
}

impl Transition<Contracts> for Transfer {
    type Output = ();

    fn apply(&self, world: &mut Draft<Contracts>, cx: &mut Context) -> Result<(), Denied> {
        let (from, amount) = (address_of(cx), positive(&self.amount)?);
        world.move_amount(&balance_name(&from)?, &balance_name(&self.to)?, &amount)?;
        Ok(cx.emit(&Transferred { from, to: self.to.clone(), amount: self.amount.clone() })?)
    }
}

/// Lets another address move so much of the sender's balance; what was approved before no longer counts.
#[transition("contracts.approve/1", needs = "contracts.transfer")]
pub struct Approve {
    /// The address that may.
    pub spender: Word,
    /// How much in all; zero takes an approval back.
    pub amount: Word,
}

impl Transition<Contracts> for Approve {
    type Output = ();

    fn apply(&self, world: &mut Draft<Contracts>, cx: &mut Context) -> Result<(), Denied> {
        let amount = Amount::parse(&self.amount).map_err(|error| denied!("amount: {error}"))?;
        ensure!(!amount.value().is_negative(), "an amount is not below zero");
        let owner = address_of(cx);
        world.set(&approval_name(&owner, &self.spender)?, Some(amount.to_value()))?;
        Ok(cx.emit(&Approved { owner, spender: self.spender.clone(), amount: self.amount.clone() })?)
    }
}

/// Moves currency from an address that has approved it to any other.
#[transition("contracts.transfer_from/1", needs = "contracts.transfer")]
pub struct TransferFrom {
    /// From this address, which has approved the sender.
    pub owner: Word,
    /// To this address.
    pub to: Word,
    /// A decimal number.
    pub amount: Word,
}

impl Transition<Contracts> for TransferFrom {
    type Output = ();

    fn apply(&self, world: &mut Draft<Contracts>, cx: &mut Context) -> Result<(), Denied> {
        let (spender, amount) = (address_of(cx), positive(&self.amount)?);
        world.subtract(&approval_name(&self.owner, &spender)?, &amount)?;
        world.move_amount(&balance_name(&self.owner)?, &balance_name(&self.to)?, &amount)?;
        Ok(cx.emit(&Transferred { from: self.owner.clone(), to: self.to.clone(), amount: self.amount.clone() })?)
    }
}

/// One entry of a patch.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PatchEntry {
    /// The entry's name.
    pub key: Text<NAME_LEN_MAX>,
    /// The value as JSON text; none removes the entry.
    pub value: Option<Text<PATCH_BYTES_MAX>>,
    /// Why.
    pub comment: Text<256>,
}

/// Sets entries without running anything.
#[transition("contracts.patch/1", needs = PATCH)]
pub struct Patch {
    /// The entries.
    pub entries: BoundedList<PatchEntry, PATCHES_MAX>,
}

impl Transition<Contracts> for Patch {
    type Output = ();

    fn apply(&self, world: &mut Draft<Contracts>, cx: &mut Context) -> Result<(), Denied> {
        for PatchEntry { key, value, comment } in self.entries.iter() {
            let value = match value {
                None => None,
                Some(text) => {
                    cx.step(text.len() as u64)?;
                    let parsed = Json::parse(text.as_bytes(), JSON_DEPTH_MAX);
                    Some(parsed.map_err(|error| denied!("{key:?}: {error}"))?)
                }
            };
            let removed = value.is_none();
            world.set(key, value)?;
            cx.emit(&Patched { name: key.clone(), removed, comment: comment.clone() })?;
        }
        Ok(())
    }
}
