//! Chains made beforehand, with all that is true of them: what runs are judged by.

use crate::dice::Dice;
use keelstone_codec::{ChainId, Height, Key, Namespace, Root, Value};
use keelstone_store::files::{Files, MemoryFiles};
use keelstone_store::{Options, Store, StoreError, View};
use keelstone_sync::peers::{Version, Versions};
use keelstone_sync::snapshot::{Plan, Skeleton, SnapshotParams, UnitName};
use keelstone_tree::{Blake3, Diff, Grown, HashKind, KeyRange, Read, ReadError};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

/// A whole state.
pub(crate) type State = BTreeMap<(Namespace, Key), Vec<u8>>;

/// States that each chain has, one a height.
pub(crate) const STATES: u64 = 12;

/// A chain that grows without end: from its first state to the last, back again, and so on, each height a block apart from
/// the one before.
pub(crate) struct Chain {
    /// What its nodes agree on.
    pub params: SnapshotParams,
    store: Store<Blake3>,
    /// The states, with their roots.
    states: Vec<(Root, State)>,
    /// Every unit of every version.
    units: BTreeMap<UnitName, Vec<u8>>,
    /// Every page of every version, with its number.
    pages: BTreeSet<(u32, Vec<u8>)>,
}

impl Chain {
    /// The first height that has the state of this one.
    fn first(height: u64) -> u64 {
        let way = STATES - 1;
        let gone = (height - 1) % (2 * way);
        1 + gone.min(2 * way - gone)
    }

    fn of(&self, height: u64) -> &(Root, State) {
        &self.states[usize::try_from(Self::first(height) - 1).expect("states are few")]
    }

    /// The version of a height.
    pub(crate) fn at(&self, height: u64) -> Version {
        Version { height: Height(height), root: self.of(height).0 }
    }

    /// The entries of a height.
    pub(crate) fn state(&self, height: Height) -> &State {
        &self.of(height.0).1
    }

    /// Whether these bytes are that unit.
    pub(crate) fn has_unit(&self, name: &UnitName, bytes: &[u8]) -> bool {
        self.units.get(name).is_some_and(|unit| unit == bytes)
    }

    /// Whether these bytes are a page of that number.
    pub(crate) fn has_page(&self, number: u32, bytes: &[u8]) -> bool {
        self.pages.contains(&(number, bytes.to_vec()))
    }

    fn new(number: usize, shape: &Shape) -> Self {
        let params = SnapshotParams {
            // All call themselves the same: a forger's chain is one of the others.
            chain_id: ChainId::new("sim-1").expect("a name"),
            hasher: HashKind::Blake3,
            chunk_weight_max: 4000,
        };
        let store = Store::create(Arc::new(MemoryFiles::new()), options()).expect("memory does not fail");
        let mut dice = Dice::new(number as u64);
        let (mut states, mut units, mut pages) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        let mut state = State::new();
        for height in (1..=STATES).map(Height) {
            let diff = shape.block(height, &mut dice);
            for (namespace, write) in diff.iter() {
                let place = (namespace.clone(), write.key.clone());
                match &write.value {
                    Some(value) => drop(state.insert(place, value.to_vec())),
                    None => drop(state.remove(&place)),
                }
            }
            let root = store.commit(height, diff).expect("memory does not fail");
            assert_eq!(root, root_of(&state), "what the store commits to is what runs are judged by");
            note_parts(&store.view(), &params, Version { height, root }, (&mut pages, &mut units));
            states.push((root, state.clone()));
        }
        Self { params, store, states, units, pages }
    }
}

/// The root of a state, from nothing but its entries.
fn root_of(state: &State) -> Root {
    let mut spaces: BTreeMap<Namespace, BTreeMap<Key, Value>> = BTreeMap::new();
    for ((name, key), value) in state {
        let value = Value::new(value.clone()).expect("not empty");
        spaces.entry(name.clone()).or_default().insert(key.clone(), value);
    }
    Grown::new::<Blake3>(&spaces).root()
}

/// All pages and all units.
type Parts<'a> = (&'a mut BTreeSet<(u32, Vec<u8>)>, &'a mut BTreeMap<UnitName, Vec<u8>>);

fn note_parts(view: &View<Blake3>, params: &SnapshotParams, at: Version, (pages, units): Parts<'_>) {
    let plan = Plan::of(view, params, at.height, at.root).expect("a small state");
    let mut skeleton = Skeleton::<Blake3>::without_offer(at.root, params);
    for page in 0..plan.pages() {
        let raw = plan.page(page).expect("it has this page");
        skeleton.add_page(&raw).expect("an honest page");
        pages.insert((page, raw));
    }
    for unit in 0..skeleton.unit_count() {
        let mut body = Vec::new();
        plan.unit_bodies(view, &[unit], &mut body).expect("memory does not fail");
        units.insert(skeleton.unit(unit).name, body);
    }
}

/// How a chain's state looks.
struct Shape {
    entries: u64,
    namespaces: u64,
    value_len_max: u64,
    /// Keys that hang beside a long spine.
    is_comb: bool,
    /// The same entries in two namespaces: equal units in two places.
    has_twins: bool,
}

impl Shape {
    fn block(&self, height: Height, dice: &mut Dice) -> Diff {
        let is_first = height == Height(1);
        let count = if is_first { self.entries } else { self.entries.div_ceil(8) };
        let mut out = BTreeMap::new();
        for number in 0..count {
            let number = if is_first { number } else { dice.below(self.entries * 9 / 8 + 1) };
            let key: Vec<u8> = if self.is_comb {
                let len = usize::try_from(1 + number % 40).expect("a small number");
                [vec![0xff; len], number.to_be_bytes()[6..].to_vec()].concat()
            } else {
                HashKind::Blake3.hash(&number.to_le_bytes()).0[..3].to_vec()
            };
            let len = usize::try_from(dice.between(1, self.value_len_max)).expect("a small number");
            let value = vec![dice.roll().to_le_bytes()[0]; len];
            let value = (is_first || !dice.percent(20)).then(|| Value::new(value).expect("not empty"));
            let name = Namespace::new(&format!("n{}", number % self.namespaces)).expect("a name");
            let key = Key::new(key).expect("a key");
            if self.has_twins {
                out.insert((Namespace::new("twin").expect("a name"), key.clone()), value.clone());
            }
            out.insert((name, key), value);
        }
        out.into()
    }
}

/// All chains.
pub(crate) static CHAINS: LazyLock<Vec<Chain>> = LazyLock::new(|| {
    let shape = |entries, namespaces, value_len_max| Shape {
        entries,
        namespaces,
        value_len_max,
        is_comb: false,
        has_twins: false,
    };
    let shapes = [
        shape(1, 1, 20),
        shape(60, 2, 60),
        shape(300, 5, 40),
        shape(150, 70, 30),
        shape(40, 1, 900),
        Shape { is_comb: true, ..shape(200, 1, 20) },
        Shape { has_twins: true, ..shape(150, 1, 40) },
    ];
    shapes.iter().enumerate().map(|(number, shape)| Chain::new(number, shape)).collect()
});

/// What a server keeps of a chain that was made beforehand.
pub(crate) trait Keeps: Versions {
    /// What the chain's nodes agree on.
    fn params(&self) -> &SnapshotParams;
    /// The chain's version of a height, kept or not.
    fn at(&self, height: u64) -> Version;
    /// The chain grew: of the newest heights so many are kept.
    fn grow(&mut self, newest: u64, keep: u64);
}

/// What one server keeps of a chain of states.
pub(crate) struct Kept {
    pub(crate) chain: &'static Chain,
    pub(crate) oldest: u64,
    pub(crate) newest: u64,
}

impl Versions for Kept {
    type View = View<Blake3>;

    fn kept(&self) -> Option<(Version, Height)> {
        Some((self.chain.at(self.newest), Height(self.oldest)))
    }

    /// None: whoever joins here asks for none.
    fn diffs_from(&self) -> Height {
        Height(self.newest + 1)
    }

    fn view(&self, height: Height) -> Result<Option<(Root, Self::View)>, ReadError> {
        if !(self.oldest..=self.newest).contains(&height.0) {
            return Ok(None);
        }
        let view = self.chain.store.view_at(Height(Chain::first(height.0))).expect("all states are kept");
        Ok(Some((view.root(), view)))
    }
}

impl Keeps for Kept {
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

/// A small store that does everything in turn.
pub(crate) fn options() -> Options {
    // Every store has the same id: what lies on a disk follows from the seed alone.
    let id = Some([7; 16]);
    Options { segment_bytes: 1 << 18, page_segment_bytes: 1 << 18, background: false, id, ..Options::default() }
}

/// Builds a store of the entries, as a node does that has joined.
pub(crate) fn built<'a>(
    files: Arc<dyn Files>,
    options: Options,
    entries: impl IntoIterator<Item = (&'a Namespace, &'a Key, &'a [u8])>,
    at: Version,
) -> Result<Store<Blake3>, StoreError> {
    let mut building = Store::build(files, options, at.height)?;
    for (name, key, value) in entries {
        building.push(name, key, value)?;
    }
    building.finish(at.root)
}

/// All entries of a version.
pub(crate) fn read_all(view: &View<Blake3>) -> State {
    let mut out = State::new();
    for (name, _) in view.namespaces() {
        for entry in view.scan(&name, KeyRange::all()) {
            let (key, value) = entry.expect("memory does not fail");
            out.insert((name.clone(), key), value.to_vec());
        }
    }
    out
}
