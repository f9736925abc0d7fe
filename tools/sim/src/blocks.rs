//! Chains of blocks made beforehand, with all that is true of them: what followers are judged by.

use crate::chain::{Keeps, State, options, read_all};
use keelstone_codec::{ChainId, Encode as _, Fixed, Hash, Height, Root, Text, Timestamp};
use keelstone_ledger::modules::{agents, memes, standard};
use keelstone_ledger::{Bundle, Genesis, Ledger, Mode, Operation, PoolLimits, SecretKey, Transaction};
use keelstone_store::files::MemoryFiles;
use keelstone_store::kv::MemoryKv;
use keelstone_store::{Options, Store, View};
use keelstone_sync::peers::{Version, Versions};
use keelstone_sync::snapshot::SnapshotParams;
use keelstone_tree::{Blake3, Diff, HashKind, ReadError};
use std::sync::{Arc, LazyLock};

/// Heights of each chain: as many as a storm brings, and some.
pub(crate) const HEIGHTS: u64 = 70;

/// A chain of blocks that posts make, from the genesis on.
pub(crate) struct Blocks {
    /// What its nodes agree on.
    pub(crate) params: SnapshotParams,
    pub(crate) genesis: Genesis,
    /// The database of its blocks.
    pub(crate) kv: Arc<MemoryKv>,
    ledger: Ledger<Blake3>,
    /// Of each height from the first on: the version, what changed it, and its block.
    heights: Vec<(Version, Diff, Vec<u8>)>,
}

impl Blocks {
    fn of(&self, height: u64) -> &(Version, Diff, Vec<u8>) {
        &self.heights[usize::try_from(height - 1).expect("heights are few")]
    }

    /// The version of a height.
    pub(crate) fn at(&self, height: u64) -> Version {
        // Liars speak of heights that there are not yet.
        self.of(height.clamp(1, HEIGHTS)).0
    }

    /// The state of a height.
    pub(crate) fn view(&self, height: Height) -> View<Blake3> {
        self.ledger.view_at(height).expect("all states are kept")
    }

    /// The entries of a height.
    pub(crate) fn state(&self, height: Height) -> State {
        read_all(&self.view(height))
    }

    pub(crate) fn genesis_hash(&self) -> Hash {
        self.ledger.genesis_hash()
    }

    /// One that puts so many posts into a block, and none into some heights.
    fn new(number: u64, posts: u64, is_full: fn(u64) -> bool) -> Self {
        let key = SecretKey::from_seed(&[200; 32]);
        // All call themselves the same: a forger's chain is one of the others.
        let mut genesis = Genesis::new(ChainId::new("sim-1").expect("a name"));
        genesis.producers = vec![key.public()];
        let params = SnapshotParams {
            chain_id: genesis.chain_id.clone(),
            hasher: HashKind::Blake3,
            chunk_weight_max: genesis.limits.snapshot_chunk_bytes,
        };
        // All versions are at hand: they are asked for again and again.
        let options = Options { recent_versions: 100, ..options() };
        let store = Store::create(Arc::new(MemoryFiles::new()), options).expect("memory does not fail");
        let (kv, pool) = (Arc::new(MemoryKv::new()), PoolLimits::default());
        let ledger = Ledger::create(store, kv.clone(), standard(), &genesis, pool).expect("memory does not fail");
        let (mut heights, mut nonce) = (Vec::new(), 0);
        for height in 1..=HEIGHTS {
            let posts = if is_full(height) { posts } else { 0 };
            for post in 0..posts {
                let operation = match nonce {
                    0 => Operation::of(&agents::Register {
                        name: Text::new("Ada").expect("a name"),
                        personality: agents::Personality::even(Fixed::from_micros(800_000)),
                        traits: Default::default(),
                    }),
                    _ => {
                        let text = format!("{post} at {height} of {number}");
                        Operation::of(&memes::Post { text: Text::new(text).expect("a short text") })
                    }
                };
                let transaction = Transaction {
                    chain_id: genesis.chain_id.clone(),
                    sender: key.public(),
                    nonce,
                    expiry_height: Height(2 * HEIGHTS),
                    session: None,
                    bundle: Bundle::new(Mode::Sync, vec![operation]).expect("one operation"),
                };
                ledger.submit(&transaction.sign(&key).to_bytes()).expect("it is the next");
                nonce += 1;
            }
            let committed = ledger.produce(Timestamp(height * 1_000 + number), key.public()).expect("it may");
            let version = Version { height: Height(height), root: committed.root };
            let diff = ledger.store().diff_at(version.height).expect("it is kept").diff();
            heights.push((version, diff, committed.block.to_bytes()));
        }
        Self { params, genesis, kv, ledger, heights }
    }
}

/// All chains of blocks.
pub(crate) static BLOCKS: LazyLock<Vec<Blocks>> = LazyLock::new(|| {
    vec![
        Blocks::new(0, 1, |height| !height.is_multiple_of(3)),
        Blocks::new(1, 5, |_| true),
        Blocks::new(2, 2, |height| height % 9 == 1),
    ]
});

/// What one server keeps of a chain of blocks.
pub(crate) struct KeptBlocks {
    pub(crate) chain: &'static Blocks,
    pub(crate) oldest: u64,
    pub(crate) newest: u64,
    /// Whether it keeps what changed each height, and the block, from the first on; else as far as it keeps states.
    pub(crate) is_whole: bool,
}

impl KeptBlocks {
    /// What changed a height, and its block, if it is kept.
    fn change(&self, height: Height) -> Option<&(Version, Diff, Vec<u8>)> {
        (self.diffs_from().0..=self.newest).contains(&height.0).then(|| self.chain.of(height.0))
    }
}

impl Versions for KeptBlocks {
    type View = View<Blake3>;

    fn kept(&self) -> Option<(Version, Height)> {
        Some((self.chain.at(self.newest), Height(self.oldest)))
    }

    fn diffs_from(&self) -> Height {
        Height(if self.is_whole { 1 } else { self.oldest + 1 })
    }

    fn view(&self, height: Height) -> Result<Option<(Root, Self::View)>, ReadError> {
        if !(self.oldest..=self.newest).contains(&height.0) {
            return Ok(None);
        }
        let view = self.chain.view(height);
        Ok(Some((view.root(), view)))
    }

    fn diff(&self, height: Height) -> Result<Option<Diff>, ReadError> {
        Ok(self.change(height).map(|(_, diff, _)| diff.clone()))
    }

    fn block(&self, height: Height) -> Result<Option<Vec<u8>>, ReadError> {
        Ok(self.change(height).map(|(_, _, block)| block.clone()))
    }
}

impl Keeps for KeptBlocks {
    fn params(&self) -> &SnapshotParams {
        &self.chain.params
    }

    fn at(&self, height: u64) -> Version {
        self.chain.at(height)
    }

    fn grow(&mut self, newest: u64, keep: u64) {
        self.newest = newest;
        self.oldest = self.oldest.max(newest.saturating_sub(keep));
    }
}
