//! A small bank that the tests run: balances, a history, and functions that misbehave in every way there is.

use keelstone_codec::{ChainId, Hash, Height, Namespace, Text, Timestamp};
use keelstone_execution::{
    BlockContext, BlockDraft, Bundle, Caller, Changes, Context, Decode, Denied, Draft, Encode, Failed, Finished,
    Function, Halt, Item, Limits, Log, Map, Mode, Operation, PublicKey, Registry, Sequence, Set, Stop, Transition,
    View, World, denied, ensure, event, namespace, transition,
};
use keelstone_tree::{Blake3, MemoryTree};

#[namespace("bank")]
pub(crate) struct Bank {
    pub(crate) balances: Map<PublicKey, u64>,
    pub(crate) notes: Map<String, Text<4096>>,
    pub(crate) total: Item<u64>,
    pub(crate) ids: Sequence<u64>,
    pub(crate) closed: Set<PublicKey>,
    pub(crate) history: Log<(PublicKey, u64)>,
}

#[namespace("other")]
pub(crate) struct Other {
    pub(crate) seen: Map<(u8, u64), Text<32>>,
}

#[derive(World)]
pub(crate) struct Both {
    pub(crate) bank: Bank,
    pub(crate) other: Other,
}

/// Makes money.
#[transition("bank.mint/1")]
#[derive(Clone, Debug)]
pub(crate) struct Mint {
    pub(crate) to: PublicKey,
    pub(crate) amount: u64,
}

#[event("bank.minted")]
pub(crate) struct Minted {
    pub(crate) amount: u64,
}

impl Transition<Bank> for Mint {
    type Output = u64;

    fn verify(&self, bank: &View<Bank>, _: &Context) -> Result<(), Denied> {
        ensure!(self.amount > 0, "an amount is positive");
        ensure!(!bank.closed.contains(&self.to)?, "the account is closed");
        Ok(())
    }

    fn apply(&self, bank: &mut Draft<Bank>, cx: &mut Context) -> Result<u64, Denied> {
        let balance = bank.balances.get(&self.to)?.unwrap_or(0);
        let balance = balance.checked_add(self.amount).ok_or_else(|| denied!("a balance stays below 2^64"))?;
        bank.balances.insert(&self.to, &balance)?;
        let total = bank.total.get_or_default()?;
        bank.total.set(&total.checked_add(self.amount).ok_or_else(|| denied!("so does the total"))?)?;
        bank.history.push(&(self.to, self.amount))?;
        cx.emit(&Minted { amount: self.amount })?;
        Ok(balance)
    }
}

/// Writes half of what it should, then ends as it is told.
#[transition("bank.half/1")]
#[derive(Clone, Debug)]
pub(crate) struct Half {
    pub(crate) end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum End {
    Denied,
    Panic,
    PanicWhileScanning,
    Swallow,
    Gas,
    Undeclared,
    LongKey,
}

impl Transition<Both> for Half {
    type Output = ();

    fn apply(&self, world: &mut Draft<Both>, cx: &mut Context) -> Result<(), Denied> {
        world.bank.total.set(&999)?;
        world.bank.balances.insert(&cx.sender(), &999)?;
        world.other.seen.insert(&(1, 1), &Text::new("half").map_err(|e| denied!("{e}"))?)?;
        cx.emit(&Minted { amount: 999 })?;
        match self.end {
            End::Denied => Err(denied!("half way")),
            End::Panic => panic!("half way"),
            End::PanicWhileScanning => {
                let _entry = world.bank.balances.iter().next();
                panic!("half way of a scan")
            }
            End::Swallow => {
                while cx.step(1_000_000).is_ok() {}
                assert!(matches!(world.bank.total.get(), Err(Stop::OutOfGas { .. })), "a stop stands");
                Ok(())
            }
            End::Gas => loop {
                cx.step(1_000)?;
            },
            End::Undeclared => {
                let _swallowed = cx.height();
                Ok(())
            }
            End::LongKey => {
                let _swallowed = world.bank.notes.contains(&"n".repeat(300));
                Ok(())
            }
        }
    }
}

/// Returns its argument, writes nothing.
#[transition("bank.echo/1")]
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    pub(crate) bytes: Vec<u8>,
}

impl Transition<Bank> for Echo {
    type Output = Vec<u8>;
    fn apply(&self, _: &mut Draft<Bank>, _: &mut Context) -> Result<Vec<u8>, Denied> {
        Ok(self.bytes.clone())
    }
}

/// Does nothing at all.
#[transition("bank.nothing/1")]
#[derive(Clone, Debug)]
pub(crate) struct Nothing;

impl Transition<Bank> for Nothing {
    type Output = ();
    fn apply(&self, _: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
        Ok(())
    }
}

/// Writes `count` notes of `bytes` bytes each.
#[transition("bank.flood/1", gas = 900_000_000)]
#[derive(Clone, Debug)]
pub(crate) struct Flood {
    pub(crate) count: u64,
    pub(crate) bytes: u16,
}

impl Transition<Bank> for Flood {
    type Output = ();
    fn apply(&self, bank: &mut Draft<Bank>, _: &mut Context) -> Result<(), Denied> {
        let note = Text::new("x".repeat(usize::from(self.bytes))).map_err(|e| denied!("{e}"))?;
        for _ in 0..self.count {
            let id = bank.ids.next()?;
            bank.notes.insert(&format!("note {id}"), &note)?;
        }
        Ok(())
    }
}

/// Says what it sees of the block.
#[transition("bank.look/1", context = [height, time, random])]
#[derive(Clone, Debug)]
pub(crate) struct Look;

impl Transition<Bank> for Look {
    type Output = (Height, Timestamp, Hash, Hash);
    fn apply(&self, _: &mut Draft<Bank>, cx: &mut Context) -> Result<Self::Output, Denied> {
        Ok((cx.height()?, cx.time()?, cx.random()?, cx.random()?))
    }
}

/// Scans what others wrote, and writes what it found.
#[transition("bank.audit/1")]
#[derive(Clone, Debug)]
pub(crate) struct Audit;

impl Transition<Bank> for Audit {
    type Output = u64;
    fn apply(&self, bank: &mut Draft<Bank>, _: &mut Context) -> Result<u64, Denied> {
        let mut sum = 0u64;
        for entry in bank.balances.iter() {
            sum = sum.checked_add(entry?.1).ok_or_else(|| denied!("too much money"))?;
        }
        let first = bank.notes.first()?;
        ensure!(first.is_none_or(|(key, _)| key.starts_with("note")), "a strange note");
        bank.total.set(&sum)?;
        Ok(sum)
    }
}

pub(crate) fn registry() -> Registry {
    let registry = Registry::new()
        .with::<Bank, Mint>()
        .with::<Both, Half>()
        .with::<Bank, Echo>()
        .with::<Bank, Nothing>()
        .with::<Bank, Flood>()
        .with::<Bank, Look>()
        .with::<Bank, Audit>();
    registry.check().expect("nothing clashes");
    registry
}

pub(crate) fn chain_id() -> ChainId {
    ChainId::new("test-1").unwrap()
}

pub(crate) fn block(height: u64) -> BlockContext {
    BlockContext {
        chain_id: chain_id(),
        height: Height(height),
        time: Timestamp(1_700_000_000_000 + height * 1_000),
        proposer: key(250),
        seed: Hash([7; 32]),
    }
}

pub(crate) fn key(byte: u8) -> PublicKey {
    PublicKey(Hash([byte; 32]))
}

pub(crate) fn bundle(operations: Vec<Operation>) -> Bundle {
    Bundle::new(Mode::Sync, operations).unwrap()
}

pub(crate) fn op(arguments: &impl Function) -> Operation {
    Operation::of(arguments)
}

pub(crate) fn mint(to: u8, amount: u64) -> Operation {
    op(&Mint { to: key(to), amount })
}

pub(crate) fn space(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

pub(crate) type State = MemoryTree<Blake3>;

/// Runs one bundle of `key(1)` in a block of its own over `state`.
pub(crate) fn run(state: &State, operations: Vec<Operation>) -> (Result<Finished, Failed>, Changes) {
    run_with(state, Caller::root(key(1)), operations, Limits::default()).expect("a tree in memory can be read")
}

pub(crate) fn run_with(
    state: &State,
    caller: Caller,
    operations: Vec<Operation>,
    limits: Limits,
) -> Result<(Result<Finished, Failed>, Changes), Halt> {
    let registry = registry();
    let mut draft = BlockDraft::begin(&registry, state.clone(), block(1));
    let result = draft.execute(caller, &bundle(operations), limits)?;
    Ok((result, draft.finish()))
}

/// Runs one bundle that succeeds, and applies what it changed.
pub(crate) fn commit(state: &mut State, operations: Vec<Operation>) -> Finished {
    let (result, changes) = run(state, operations);
    state.apply(&changes.to_diff());
    result.unwrap()
}
