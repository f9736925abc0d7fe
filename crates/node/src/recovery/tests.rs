//! Recovery of homes on a disk, spoiled in one way each.

use super::blocks::LEFT_BEHIND;
use super::*;
use crate::engine;
use crate::exit::Exit;
use crate::generations::Fault;
use crate::keyfile::PRODUCER;
use crate::library::open_library;
use crate::snapshots::making;
use keelstone_codec::{Blob, ChainId, Encode as _};
use keelstone_ledger::SecretKey;
use keelstone_ledger::modules::standard;
use keelstone_store::files::Directory;
use keelstone_sync::mirror::{HEAD_FILE, Head};
use std::fs;
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::Path;
use tempfile::TempDir;

/// A home whose chain is at height 3, with a snapshot of that height, and the name of its generation.
fn chain() -> (TempDir, Home, Config, String) {
    let place = tempfile::tempdir().expect("a temporary directory");
    let home = Home::new(place.path().to_owned());
    let mut config = Config::default();
    config.snapshots.reserve_percent = 0;
    home.write_genesis(&Genesis::new(ChainId::new("recovered-1").expect("a name"))).expect("written");
    let engine = engine::open(&home, &config, &standard()).expect("a new chain");
    let producer = SecretKey::from_seed(&[7; 32]).public();
    for time in 1..=3 {
        engine.produce(Timestamp(time), producer, true).expect("a block");
    }
    let library = open_library(&home).expect("a library");
    let version = engine.version(None).expect("the last");
    version.snapshot(&library, &making(&config.snapshots), &mut |_| ControlFlow::Continue(())).expect("a snapshot");
    drop((version, engine));
    let current = named(&home);
    (place, home, config, current)
}

/// The generation that counts.
fn named(home: &Home) -> String {
    fs::read_to_string(home.data().join("CURRENT")).expect("one counts")
}

/// Recovers with one strategy, after `spoil` had the database of blocks that counts, with `progress` told.
fn recovered_by(
    only: Strategy,
    (home, config): (&Home, &Config),
    spoil: &dyn Fn(&Path),
    progress: &mut dyn FnMut(Strategy, u64, u64),
) -> Result<Recovered, Failure> {
    let (registry, keys) = (standard(), KeyDir::new(home.path()));
    let stop = Stop::default();
    let wish =
        Wish { wanted: Wanted::Newest, root: None, only: Some(only), keys: &keys, who: Who::User, stop, progress };
    let genesis = home.read_genesis().expect("it was written");
    let place = Place::<Blake3>::open(home, genesis, config, &registry, wish).expect("nobody uses it");
    spoil(&place.replaced.generation.as_ref().expect("there is a state").blocks());
    place.run()
}

/// spec: RECOVER-1, RECOVER-7. A version from which more blocks would be run than may be, or from which none leads on, is neither
/// reckoned with nor fetched.
#[test]
fn a_version_that_leads_nowhere_is_left_where_it_is() {
    let (_place, home, mut config, _) = chain();
    let engine = engine::open(&home, &config, &standard()).expect("it opens");
    for time in 4..=6 {
        engine.produce(Timestamp(time), SecretKey::from_seed(&[7; 32]).public(), true).expect("a block");
    }
    drop(engine);
    let library = open_library(&home).expect("a library");
    let id = library.list().first().expect("a snapshot").id;
    let mirror = tempfile::tempdir().expect("a temporary directory");
    let directory = Directory::new(mirror.path()).expect("it is there");
    library.export_directory(id, &directory, 0, &mut |_| ControlFlow::Continue(())).expect("copied");
    let head = Head { height: id.height, certificate: Blob::new([]).expect("it is short"), part: None };
    fs::write(mirror.path().join(HEAD_FILE), head.to_bytes()).expect("written");
    drop(library);

    config.recovery.sources = vec![crate::config::Place::Directory(mirror.path().to_owned())];
    let (registry, keys) = (standard(), KeyDir::new(home.path()));
    let tried = |config: &Config, only: Strategy, (wanted, root): (Wanted, Option<Root>)| {
        let progress = &mut |_: Strategy, _: u64, _: u64| {};
        let stop = Stop::default();
        let wish = Wish { wanted, root, only: Some(only), keys: &keys, who: Who::User, stop, progress };
        let genesis = home.read_genesis().expect("it was written");
        let mut place = Place::<Blake3>::open(&home, genesis, config, &registry, wish).expect("nobody uses it");
        let target = place.target().expect("a root is known").version();
        assert_eq!((target.height, place.estimate_ms(only, &target)), (Height(6), None));
        let failed = place.build(only, &target).expect_err("it leads nowhere");
        assert!(!home.joining().exists(), "nothing is fetched");
        (failed, target, place.replaced.generation.as_ref().expect("there is a state").blocks())
    };
    config.recovery.max_block_replay = 1;
    let (failed, target, blocks) = tried(&config, Strategy::LocalSnapshot, (Wanted::Newest, None));
    assert_eq!(failed, Failed::TooFar { needed: 3, limit: 1 });
    let (failed, ..) = tried(&config, Strategy::NetworkSnapshot, (Wanted::Newest, None));
    assert!(failed.to_string().contains("takes 3 blocks, the limit is 1"), "{failed}");

    config.recovery.max_block_replay = 100;
    fs::remove_file(&blocks).expect("it is there");
    fs::remove_file(blocks.with_file_name("state").join("superblock")).expect("it is there");
    for only in [Strategy::LocalSnapshot, Strategy::NetworkSnapshot] {
        let (failed, ..) = tried(&config, only, (Wanted::Height(target.height), Some(target.root)));
        assert!(failed.to_string().contains("the blocks are gone"), "{failed}");
    }
}

/// spec: RECOVER-9. Blocks that the machine could not copy may be whole, and are nowhere else: that strategy fails, and the
/// old state stays with them.
#[test]
fn blocks_that_could_not_be_copied_are_not_given_up() {
    let (_place, home, config, before) = chain();
    let unreadable = |blocks: &Path| {
        let log = blocks.with_extension("wal");
        fs::remove_file(&log).expect("it is there");
        fs::create_dir(&log).expect("free");
    };
    let found = recovered_by(Strategy::LocalSnapshot, (&home, &config), &unreadable, &mut |_, _, _| {});
    let found = found.expect("it is reported");
    let [(_, Err(Failed::Machine(why)))] = &found.outcome.attempts[..] else { panic!("{:?}", found.outcome.attempts) };
    assert!(why.contains("could not copy"), "{why}");
    let said = failure(&found, &Stop::default());
    assert!(said.exit == Exit::Error && said.message.contains(why.as_str()), "{said}");
    assert_eq!((named(&home), found.warnings), (before, vec![]));
}

/// Told to stop on the way it ends where it is: the state that counts is the one that did, nothing is left of what was built, and both are
/// on record.
#[test]
fn what_is_told_to_stop_keeps_the_state_that_counts() {
    let (_place, home, config, before) = chain();
    let (registry, keys, stop) = (standard(), KeyDir::new(home.path()), Stop::default());
    let progress = &mut |_: Strategy, _: u64, _: u64| stop.ask();
    let (wanted, only, who) = (Wanted::Newest, Some(Strategy::BlockReplay), Who::User);
    let wish = Wish { wanted, root: None, only, keys: &keys, who, stop: stop.clone(), progress };
    let found = run(&home, &config, &registry, wish).expect("it is reported");
    let said = failure(&found, &stop);
    assert!(found.outcome.recovered().is_none() && said.exit == Exit::Error, "{said}");
    let left = fs::read_dir(home.data()).expect("there").filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    assert_eq!(left.filter(|name| name.starts_with("gen-")).collect::<Vec<_>>(), [before.trim()]);
    assert_eq!(engine::open(&home, &config, &registry).expect("it opens").status().expect("it stands").height, 3);
}

/// spec: RECOVER-9. Blocks that are damaged hinder nobody: the state is had again without them, and that is said.
#[test]
fn blocks_that_are_damaged_are_left_behind_and_that_is_said() {
    let (_place, home, config, before) = chain();
    let damage = |blocks: &Path| {
        let mut file = fs::OpenOptions::new().write(true).open(blocks).expect("it is there");
        file.write_all(&[0x5a; 4096]).expect("written");
    };
    let found = recovered_by(Strategy::LocalSnapshot, (&home, &config), &damage, &mut |_, _, _| {});
    let found = found.expect("it is reported");
    assert!(found.outcome.recovered().is_some() && named(&home) != before, "{:?}", found.outcome.attempts);
    assert!(matches!(&found.warnings[..], [warning] if warning.starts_with(LEFT_BEHIND)), "{:?}", found.warnings);
    let kept = home.data().join(format!("blocks-of-{}", before.trim()));
    let bytes = fs::read(kept.join("blocks.redb")).expect("what there is of them is kept");
    // All but its header, which redb writes as it closes.
    assert!(bytes[512..4096].iter().all(|byte| *byte == 0x5a));
    assert!(found.warnings[0].contains(&kept.display().to_string()) && kept.join("blocks.wal").exists());
    let engine = engine::open(&home, &config, &standard()).expect("it opens");
    engine.produce(Timestamp(9), SecretKey::from_seed(&[7; 32]).public(), true).expect("it goes on");
}

/// spec: RECOVER-3, STORE-10. A switch that failed may have come as far as the name: what it names stays, and the old state stays
/// beside it. Whichever of the names a restart finds, it leads to a state that is whole.
#[test]
fn what_a_failed_switch_names_is_not_removed() {
    for only in [Strategy::BlockReplay, Strategy::LocalSnapshot] {
        let (_place, home, config, before) = chain();
        fs::write(Fault::Switch.file(&home.data()), "").expect("written");
        let found = recovered_by(only, (&home, &config), &|_| {}, &mut |_, _, _| {}).expect("it is reported");
        assert!(found.outcome.recovered().is_none(), "{:?}", found.outcome.attempts);
        let after = named(&home);
        assert_ne!(after, before, "it came as far as the name");
        fs::remove_file(Fault::Switch.file(&home.data())).expect("it was written");
        for name in [before, after] {
            let restarted = tempfile::tempdir().expect("a temporary directory");
            copy(home.path(), restarted.path());
            let home = Home::new(restarted.path().to_owned());
            fs::write(home.data().join("CURRENT"), name).expect("written");
            let engine = engine::open(&home, &config, &standard()).expect("it opens");
            assert_eq!(engine.status().expect("it stands").height, 3);
            assert!(engine.block(Some(Height(1))).is_ok(), "its blocks are there");
        }
    }
}

/// Copies a directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("there") {
        let path = entry.expect("there").path();
        let to = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copy(&path, &to) } else { fs::copy(&path, &to).map(drop).expect("copied") }
    }
}

/// A database that the machine cannot read now is what there is to say, and not that nothing here says anything; of one that is
/// damaged that it is.
#[test]
fn what_keeps_the_target_from_being_known_is_said() {
    for (spoil, exit) in [("a directory", Exit::Error), ("nothing", Exit::Integrity)] {
        let (_place, home, config, current) = chain();
        let generation = home.data().join(current.trim());
        fs::remove_file(generation.join("state/superblock")).expect("it is there");
        let blocks = generation.join("blocks.redb");
        fs::remove_file(&blocks).expect("it is there");
        match spoil {
            "nothing" => fs::write(&blocks, "nothing").expect("written"),
            _ => fs::create_dir(&blocks).expect("made"),
        }
        let failure = recovered_by(Strategy::LocalSnapshot, (&home, &config), &|_| {}, &mut |_, _, _| {}).err();
        let failure = failure.expect("nothing is known");
        assert!(failure.exit == exit && failure.message.contains("blocks.redb"), "{spoil}: {failure}");
    }
}

/// What a node does by itself it does all the same where its own audit log cannot be written, and where the producer's key cannot
/// be read; what a user does is not begun without a record.
#[test]
fn a_node_recovers_without_a_record_and_without_its_producers_key() {
    let (_place, home, config, before) = chain();
    fs::remove_file(home.data().join(before.trim()).join("state/superblock")).expect("it is there");
    OwnLog::of(&home).told(Who::Node, NodeEvent::TookBack { height: Height(4) }, Stood::default());
    fs::write(home.own_log().join("HEAD"), "damaged").expect("written");
    fs::create_dir_all(home.path().join("keys")).expect("made");
    fs::write(KeyDir::new(home.path()).path(PRODUCER).expect("a name"), "damaged").expect("written");
    let (registry, keys) = (standard(), KeyDir::new(home.path()));
    let run_as = |who: Who| {
        let progress = &mut |_: Strategy, _: u64, _: u64| {};
        let stop = Stop::default();
        let wish = Wish { wanted: Wanted::Newest, root: None, only: None, keys: &keys, who, stop, progress };
        run(&home, &config, &registry, wish)
    };
    let failure = run_as(Who::User).err().expect("there is no record of it");
    assert!(failure.exit == Exit::Integrity && named(&home) == before, "{failure}");
    let found = run_as(Who::Node).expect("it is done all the same");
    assert!(found.outcome.recovered().is_some() && named(&home) != before, "{:?}", found.outcome.attempts);
}

/// spec: RECOVER-9. Where no report can be kept nothing is begun; where that turns out when another state counts already, it
/// counts, and what failed is said beside it.
#[test]
fn a_report_that_cannot_be_kept_makes_no_recovery_a_failure() {
    let (_place, home, config, before) = chain();
    let reports = home.path().join("recoveries");
    fs::write(&reports, "in the way").expect("written");
    let replay = |progress: &mut dyn FnMut(Strategy, u64, u64)| {
        recovered_by(Strategy::BlockReplay, (&home, &config), &|_| {}, progress)
    };
    let failure = replay(&mut |_, _, _| panic!("nothing is run")).err().expect("no report can be kept");
    assert!(failure.message.contains("recoveries") && named(&home) == before, "{failure}");

    fs::remove_file(&reports).expect("it was written");
    let in_the_way = &mut |_, _, _| {
        if reports.is_dir() {
            fs::remove_dir_all(&reports).expect("it was made");
            fs::write(&reports, "in the way").expect("written");
        }
    };
    let found = replay(in_the_way).expect("another state counts");
    assert!(found.outcome.recovered().is_some() && named(&home) != before, "{:?}", found.outcome.attempts);
    assert!(matches!(&found.warnings[..], [warning] if warning.contains("could not write")), "{:?}", found.warnings);
}
