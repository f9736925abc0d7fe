//! INTERIM: one version of the state, plain, until the paged tree is there.
use keelstone_codec::{Decode, Encode, Hash, Key, Namespace, Reader, Root, Value};
use keelstone_tree::{Backing, Diff, Hasher, KeyRange, Level, PageAt, Place, ReadError, Scan, Totals, bits, preimage};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::ops::Bound;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) value_len: u32,
    pub(crate) value_hash: Hash,
    pub(crate) place: Place,
}
pub(crate) struct Pages<H>(Arc<dyn Backing>, PhantomData<H>);
pub(crate) struct PagesStats {
    pub(crate) memory_bytes: usize,
}
impl<H> Pages<H> {
    pub(crate) fn new(b: Arc<dyn Backing>) -> Arc<Self> {
        Arc::new(Self(b, PhantomData))
    }
    pub(crate) fn evict(&self, _: usize) -> usize {
        0
    }
    pub(crate) fn stats(&self) -> PagesStats {
        PagesStats { memory_bytes: 0 }
    }
}
#[derive(Clone, Debug)]
pub(crate) struct Rewrite {
    pub(crate) namespace: Namespace,
    pub(crate) key: Key,
    pub(crate) moved: Option<(Place, Place)>,
}
#[derive(Clone, Debug)]
pub(crate) struct Stale {
    pub(crate) namespace: Namespace,
    pub(crate) key: Key,
    pub(crate) value: Option<Entry>,
}
#[derive(Default)]
pub(crate) struct Survey {
    pub(crate) stale: Vec<Stale>,
    pub(crate) next: Option<(Namespace, Key)>,
}
#[derive(Clone, Debug)]
pub(crate) struct Top(PageAt);
impl Encode for Top {
    fn encode(&self, out: &mut Vec<u8>) {
        self.0.encode(out);
    }
}
impl Decode for Top {
    fn decode(input: &mut Reader<'_>) -> Result<Self, keelstone_codec::DecodeError> {
        Ok(Self(PageAt::decode(input)?))
    }
}
pub(crate) struct Tree<H> {
    backing: Arc<Pages<H>>,
    state: Arc<BTreeMap<Namespace, BTreeMap<Key, Entry>>>,
    root: Root,
    at: Arc<std::sync::Mutex<Option<Top>>>,
    _h: PhantomData<H>,
}
impl<H> Clone for Tree<H> {
    fn clone(&self) -> Self {
        Self { backing: self.backing.clone(), state: self.state.clone(), root: self.root, at: self.at.clone(), _h: PhantomData }
    }
}
pub(crate) struct Draft<H> {
    tree: Tree<H>,
    replaced: Vec<Option<Entry>>,
    fresh: Vec<(usize, Namespace, Key)>,
}

impl<H: Hasher> Tree<H> {
    pub(crate) fn empty(backing: &Arc<Pages<H>>) -> Self {
        let mut t = Self { backing: backing.clone(), state: Arc::default(), root: Root::default(), at: Arc::default(), _h: PhantomData };
        t.rehash();
        t
    }
    pub(crate) fn open(pages: &Arc<Pages<H>>, top: &Top, root: Root) -> Result<Self, ReadError> {
        let bad = |e: keelstone_codec::DecodeError| ReadError::damaged(e.to_string());
        let bytes = pages.0.page(top.0)?;
        let mut r = Reader::new(&bytes);
        let mut state: BTreeMap<Namespace, BTreeMap<Key, Entry>> = BTreeMap::new();
        for _ in 0..u32::decode(&mut r).map_err(bad)? {
            let ns = Namespace::decode(&mut r).map_err(bad)?;
            let key = Key::decode(&mut r).map_err(bad)?;
            let (place, value_len, value_hash) = Decode::decode(&mut r).map_err(bad)?;
            state.entry(ns).or_default().insert(key, Entry { place, value_len, value_hash });
        }
        let mut t = Self { backing: pages.clone(), state: Arc::new(state), root: Root::default(), at: Arc::default(), _h: PhantomData };
        t.rehash();
        if t.root != root {
            return Err(ReadError::damaged("root"));
        }
        Ok(t)
    }
    fn rehash(&mut self) {
        let namespaces = self.state.iter().map(|(name, entries)| {
            let leaves = entries.iter().map(|(key, e)| {
                let hash = H::hash_node(&preimage::leaf(key.len() as u16, e.value_len, &H::hash(key), &e.value_hash));
                (key.as_slice(), Totals::entry(key.len(), e.value_len), hash)
            });
            let (totals, root) = fold::<H>(Level::Entries, leaves).expect("entry");
            let node = preimage::namespace(name.as_bytes().len() as u16, totals, &H::hash(name.as_bytes()), &H::hash(&root.0));
            (name.as_bytes(), totals, H::hash_node(&node))
        });
        self.root = match fold::<H>(Level::Namespaces, namespaces) {
            Some((_, hash)) => Root(hash),
            None => Root(H::hash_node(&preimage::empty())),
        };
    }
    pub(crate) fn root(&self) -> Root {
        self.root
    }
    pub(crate) fn pages(&self) -> &Arc<Pages<H>> {
        &self.backing
    }
    pub(crate) fn totals(&self) -> Totals {
        self.namespaces().fold(Totals::default(), |s, (_, t, _)| s + t)
    }
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = (&Namespace, Totals, Hash)> {
        self.state.iter().map(|(n, e)| {
            (n, e.iter().fold(Totals::default(), |s, (k, e)| s + Totals::entry(k.len(), e.value_len)), Hash::ZERO)
        })
    }
    pub(crate) fn find(&self, ns: &Namespace, key: &[u8]) -> Result<Option<Entry>, ReadError> {
        Ok(self.state.get(ns).and_then(|e| e.get(key)).copied())
    }
    pub(crate) fn value(&self, e: &Entry) -> Result<Value, ReadError> {
        let v = self.backing.0.value(e.place, e.value_len)?;
        if H::hash(&v) == e.value_hash { Ok(v) } else { Err(ReadError::damaged(format!("value at {:#x} does not match its hash", e.place.0))) }
    }
    pub(crate) fn survey(
        &self,
        from: Option<&(Namespace, Key)>,
        max: usize,
        _page: impl Fn(PageAt) -> bool,
        stale: impl Fn(Place) -> bool,
    ) -> Result<Survey, ReadError> {
        let mut out = Survey::default();
        let all = self.state.iter().flat_map(|(n, es)| es.iter().map(move |(k, e)| (n, k, e)));
        for (i, (n, k, e)) in all.filter(|(n, k, _)| from.is_none_or(|(an, ak)| (*n, *k) >= (an, ak))).enumerate() {
            if i >= max.max(1) {
                out.next = Some((n.clone(), k.clone()));
                break;
            }
            if stale(e.place) {
                out.stale.push(Stale { namespace: n.clone(), key: k.clone(), value: Some(*e) });
            }
        }
        Ok(out)
    }
    pub(crate) fn prepare(&self, diff: &Diff) -> Result<Draft<H>, ReadError> {
        let mut tree = self.clone();
        tree.at = Arc::default();
        let state = Arc::make_mut(&mut tree.state);
        let mut replaced = Vec::new();
        let mut fresh = Vec::new();
        for (i, (ns, w)) in diff.iter().enumerate() {
            let entries = state.entry(ns.clone()).or_default();
            replaced.push(match &w.value {
                Some(v) => {
                    fresh.push((i, ns.clone(), w.key.clone()));
                    entries.insert(w.key.clone(), Entry { place: Place(0), value_len: v.len() as u32, value_hash: H::hash(v) })
                }
                None => entries.remove(&w.key),
            });
        }
        state.retain(|_, e| !e.is_empty());
        tree.rehash();
        Ok(Draft { tree, replaced, fresh })
    }
    pub(crate) fn rewrite(&self, rewrites: &[Rewrite]) -> Result<Draft<H>, ReadError> {
        let mut tree = self.clone();
        tree.at = Arc::default();
        let state = Arc::make_mut(&mut tree.state);
        for r in rewrites {
            if let (Some((from, to)), Some(e)) = (r.moved, state.get_mut(&r.namespace).and_then(|e| e.get_mut(&r.key))) {
                if e.place == from {
                    e.place = to;
                }
            }
        }
        Ok(Draft { tree, replaced: vec![], fresh: vec![] })
    }
    pub(crate) fn flush<E>(&self, mut write: impl FnMut(&[u8]) -> Result<PageAt, E>) -> Result<usize, E> {
        if self.at.lock().expect("l").is_some() {
            return Ok(0);
        }
        let mut out = Vec::new();
        (self.state.values().map(BTreeMap::len).sum::<usize>() as u32).encode(&mut out);
        for (n, es) in self.state.iter() {
            for (k, e) in es {
                n.encode(&mut out);
                k.encode(&mut out);
                (e.place, e.value_len, e.value_hash).encode(&mut out);
            }
        }
        *self.at.lock().expect("l") = Some(Top(write(&out)?));
        Ok(1)
    }
    pub(crate) fn top(&self) -> Option<Top> {
        self.at.lock().expect("l").clone()
    }
}
impl<H: Hasher> keelstone_tree::Read for Tree<H> {
    fn get(&self, ns: &Namespace, key: &[u8]) -> Result<Option<Value>, ReadError> {
        self.find(ns, key)?.map(|e| self.value(&e)).transpose()
    }
    fn scan<'a>(&'a self, ns: &Namespace, range: KeyRange) -> Scan<'a> {
        let Some(entries) = self.state.get(ns).filter(|_| !range.is_empty()) else { return Box::new(std::iter::empty()) };
        let end = range.end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let found = entries.range::<[u8], _>((Bound::Included(range.start.as_slice()), end));
        let found = found.map(|(key, e)| self.value(e).map(|v| (key.clone(), v)));
        if range.reverse { Box::new(found.rev()) } else { Box::new(found) }
    }
}
impl<H: Hasher> Draft<H> {
    pub(crate) fn root(&self) -> Root {
        self.tree.root
    }
    pub(crate) fn replaced(&self) -> &[Option<Entry>] {
        &self.replaced
    }
    pub(crate) fn commit(mut self, mut place: impl FnMut(usize) -> Place) -> Tree<H> {
        let state = Arc::make_mut(&mut self.tree.state);
        for (i, ns, key) in &self.fresh {
            if let Some(e) = state.get_mut(ns).and_then(|e| e.get_mut(key)) {
                e.place = place(*i);
            }
        }
        self.tree
    }
}

fn fold<'a, H: Hasher>(level: Level, leaves: impl Iterator<Item = (&'a [u8], Totals, Hash)>) -> Option<(Totals, Hash)> {
    let mut waiting: Vec<(u16, Totals, Hash)> = Vec::new();
    let mut last: Option<(&[u8], Totals, Hash)> = None;
    let join = |crit, left: (Totals, Hash), right: (Totals, Hash)| {
        let node = preimage::inner(level, crit, [left.0, right.0], [&left.1, &right.1]);
        (left.0 + right.0, H::hash_node(&node))
    };
    for leaf in leaves {
        if let Some((key, totals, hash)) = last {
            let crit = bits::crit(key, leaf.0).expect("keys strictly ascend");
            let mut node = (totals, hash);
            while let Some((above, totals, hash)) = waiting.pop_if(|(above, ..)| *above > crit) {
                node = join(above, (totals, hash), node);
            }
            waiting.push((crit, node.0, node.1));
        }
        last = Some(leaf);
    }
    let (_, totals, hash) = last?;
    Some(waiting.into_iter().rfold((totals, hash), |node, (crit, totals, hash)| join(crit, (totals, hash), node)))
}
