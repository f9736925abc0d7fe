//! What making a snapshot costs and what receiving one does, with a store at both ends.
//!
//! ```text
//! cargo run --release -p keelstone-sync --example snapshot_bench -- create DIR [keys] [level] [W]
//! cargo run --release -p keelstone-sync --example snapshot_bench -- restore DIR
//! cargo run --release -p keelstone-sync --example snapshot_bench -- levels FILE [W]
//! ```
//!
//! `create` makes a snapshot of a store of entries with keys of 32 bytes and values of 100 that do not compress: into a
//! library, durable, read back and proven; and then each step of it alone, on one thread. The store in DIR is built if there
//! is none, and opened anew in any case, so that none of its pages are in memory. `restore` receives what `create` left in
//! DIR as from peers, in a process of its own, so that its memory is that of a restore and nothing else. `levels` packs any
//! file.
//!
//! Where Linux tells, the processor's time stands beside the clock's, of the whole process for what is done in all and of
//! this thread for a step: on a machine that does other work it is the one that can be compared.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a bench ends when something is wrong")]

use keelstone_codec::{ChainId, Height, Key, Namespace, Root};
use keelstone_store::files::Directory;
use keelstone_store::{Options, Store};
use keelstone_sync::library::{Library, Making};
use keelstone_sync::snapshot::{
    ChunkVerdict, Offer, OfferVerdict, Plan, Restore, RestoreLimits, Skeleton, SnapshotParams, pack, unpack,
};
use keelstone_tree::{Blake3, Bulk, HashKind, Level};
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The allocator of the binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const HEIGHT: Height = Height(1);

/// A stretch of work: its time by the clock, and on the processor.
#[derive(Default, Clone, Copy)]
struct Spent {
    clock: Duration,
    processor: Duration,
}

/// Time this thread has been on a processor, where the system tells.
fn of_thread() -> Duration {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or_default())
}

/// Time all threads there are or were have been on processors, to the hundredth of a second, where the system tells.
fn of_process() -> Duration {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything: user's and system's time are the twelfth and thirteenth.
    let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}

impl Spent {
    fn on<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.by(of_thread, work)
    }

    fn by<T>(&mut self, on_processor: fn() -> Duration, work: impl FnOnce() -> T) -> T {
        let (start, processor) = (Instant::now(), on_processor());
        let out = work();
        self.processor += on_processor() - processor;
        self.clock += start.elapsed();
        out
    }

    fn print(&self, what: &str, keys: u64, bytes: u64) {
        let per_second = |amount: u64| u128::from(amount) * 1_000_000_000 / self.clock.as_nanos().max(1);
        println!(
            "{what}: {} keys/s, {} MB/s, {} ns a key by the clock, {} on the processor",
            per_second(keys),
            per_second(bytes) / 1_000_000,
            self.clock.as_nanos() / u128::from(keys.max(1)),
            self.processor.as_nanos() / u128::from(keys.max(1)),
        );
    }
}

/// The most memory this process ever held, as far as Linux tells.
fn print_memory() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for line in status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("RssAnon")) {
        println!("{line}");
    }
}

fn params(chunk_weight_max: u32) -> SnapshotParams {
    SnapshotParams { chain_id: ChainId::new("bench").unwrap(), hasher: HashKind::Blake3, chunk_weight_max }
}

fn build(directory: &Path, keys: u64) {
    let namespace = Namespace::new("bench").unwrap();
    let mut all: Vec<[u8; 32]> = (0..keys).map(|number| HashKind::Blake3.hash(&number.to_le_bytes()).0).collect();
    all.sort_unstable();
    let files = Arc::new(Directory::new(directory).unwrap());
    let mut building = Store::<Blake3>::build(files, Options::default(), HEIGHT).unwrap();
    let mut bulk = [Level::Entries, Level::Namespaces].map(Bulk::<Blake3>::new);
    for key in &all {
        let value: Vec<u8> = (0..4u8).flat_map(|part| HashKind::Blake3.hash(&[&key[..], &[part]].concat()).0).collect();
        building.push(&namespace, &Key::new(&key[..]).unwrap(), &value[..100]).unwrap();
        bulk[0].entry(key, &value[..100]).unwrap();
    }
    let entries = bulk[0].finish().unwrap();
    bulk[1].namespace(namespace.as_bytes(), &entries).unwrap();
    building.finish(Root(bulk[1].finish().unwrap().hash)).unwrap();
}

fn create(directory: &Path, keys: u64, level: i32, chunk_weight_max: u32) {
    let place = directory.join("store");
    if !place.exists() {
        build(&place, keys);
    }
    let store = Store::<Blake3>::open(Arc::new(Directory::new(place).unwrap()), Options::default()).unwrap();
    let (view, totals) = (store.view(), store.view().totals());
    assert_eq!(totals.count, keys, "the store in {} has another number of entries", directory.display());

    let library = Directory::new(directory.join("library")).unwrap();
    let (library, _) = Library::open(Arc::new(library)).unwrap();
    library.keep(0).unwrap();
    let (making, params) = (Making { level, ..Making::default() }, params(chunk_weight_max));
    let mut in_all = Spent::default();
    let info = in_all.by(of_process, || {
        library.create(&view, &params, HEIGHT, view.root(), &making, &mut |_| ControlFlow::Continue(())).unwrap()
    });
    println!("{keys} keys, {} bytes in {} chunks of {} bytes", totals.bytes, info.chunks, info.bytes);
    in_all.print("create in all", keys, totals.bytes);
    print_memory();

    let [mut plan_time, mut body_time, mut pack_time, mut check_time] = [Spent::default(); 4];
    let plan = plan_time.on(|| Plan::of(&view, &params, HEIGHT, view.root()).unwrap());
    let mut skeleton = Skeleton::<Blake3>::new(plan.root(), plan.metadata());
    for index in 0..plan.chunks() {
        let body = body_time.on(|| plan.body(&view, index).unwrap());
        let wire = pack_time.on(|| pack(&body, level).unwrap());
        check_time.on(|| {
            let body = unpack(&wire, skeleton.chunk_bytes_max()).unwrap();
            if index < plan.pages() {
                skeleton.add_page(&body).unwrap();
            } else {
                skeleton.check(index, &body).unwrap();
            }
        });
    }
    for (what, spent) in [("plan", plan_time), ("read", body_time), ("pack", pack_time), ("check", check_time)] {
        spent.print(what, keys, totals.bytes);
    }
}

fn restore(directory: &Path) {
    let (library, _) = Library::open(Arc::new(Directory::new(directory.join("library")).unwrap())).unwrap();
    let info = library.list().pop().expect("a snapshot that `create` left");
    let pin = library.pin(info.id).unwrap();
    let root = info.root;
    let offer = Offer {
        height: info.id.height.0,
        format: info.id.format,
        chunks: info.chunks,
        hash: info.hash.as_bytes().to_vec(),
        metadata: info.metadata,
    };
    let staging = Arc::new(Directory::new(directory.join("staging")).unwrap());
    let params = params(info.chunk_weight_max);
    let mut restore = Restore::<Blake3>::open(staging, params, RestoreLimits::default()).unwrap();
    assert_eq!(restore.offer(&offer, root.as_bytes()), OfferVerdict::Accept);
    let (mut apply_time, mut build_time) = (Spent::default(), Spent::default());
    for index in 0..info.chunks {
        let wire = pin.chunk(index).unwrap().unwrap();
        let verdict = apply_time.by(of_process, || restore.apply(index, &wire, "peer"));
        assert_eq!(verdict, ChunkVerdict::Accept);
    }
    let totals = restore.progress().done;
    let restored = directory.join("restored");
    let store = build_time.by(of_process, || {
        let files = Arc::new(Directory::new(&restored).unwrap());
        let mut building = Store::<Blake3>::build(files, Options::default(), HEIGHT).unwrap();
        restore.entries(|namespace, key, value| building.push(namespace, key, value)).unwrap();
        building.finish(root).unwrap()
    });
    assert_eq!(store.root(), root);
    restore.clear().unwrap();
    drop(store);
    fs::remove_dir_all(restored).unwrap();
    let all =
        Spent { clock: apply_time.clock + build_time.clock, processor: apply_time.processor + build_time.processor };
    apply_time.print("prove and stage", totals.count, totals.bytes);
    build_time.print("read back and build", totals.count, totals.bytes);
    all.print("restore in all", totals.count, totals.bytes);
    print_memory();
}

fn levels(file: &Path, chunk_weight_max: usize) {
    let bytes = fs::read(file).unwrap();
    for level in [1, 2, 3, 5, 7, 9, 12, 15, 19] {
        let (mut packing, mut unpacking, mut size) = (Duration::MAX, Duration::MAX, 0);
        // The best of a few: what else the machine did is in none of them.
        for _ in 0..5 {
            let (mut pack_time, mut unpack_time) = (Spent::default(), Spent::default());
            size = 0;
            for piece in bytes.chunks(chunk_weight_max) {
                let wire = pack_time.on(|| pack(piece, level).unwrap());
                unpack_time.on(|| assert_eq!(*unpack(&wire, u32::MAX).unwrap(), *piece));
                size += wire.len();
            }
            (packing, unpacking) = (packing.min(pack_time.clock), unpacking.min(unpack_time.clock));
        }
        let rate = |spent: Duration| bytes.len() as u128 * 1000 / spent.as_nanos().max(1);
        let share = size * 1000 / bytes.len();
        println!("level {level}: {share} thousandths, {} MB/s packed, {} unpacked", rate(packing), rate(unpacking));
    }
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u32| words.get(index).map_or(default, |text| text.parse().unwrap());
    let path = PathBuf::from(words.get(1).expect("create DIR, restore DIR or levels FILE"));
    match words[0].as_str() {
        "create" => {
            let level = words.get(3).map_or(1, |text| text.parse().unwrap());
            create(&path, number(2, 1_000_000).into(), level, number(4, 4 << 20));
        }
        "restore" => restore(&path),
        "levels" => levels(&path, number(2, 4 << 20) as usize),
        other => panic!("{other} is neither create nor restore nor levels"),
    }
}
