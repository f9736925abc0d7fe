//! A node's own audit log: that nothing of it can be changed unseen, that a crash at any change of the disk loses nothing that
//! was acknowledged, and that it stays small.

use crate::tools::key;
use keelstone_codec::{Decode as _, DecodeError, Encode as _, Hash, Height, Root, Timestamp, splitmix64};
use keelstone_ledger::{
    NODE_TEXT_BYTES_MAX, NodeCheckpoint, NodeEvent, NodeLog, NodeLogError, NodeLogLimits, NodeLogState, NodeRecord,
    NodeStep, NodeVerdict, NodeWalk, SecretKey, SignedNodeRecord, Standing, cut,
};
use keelstone_store::files::{Fault, FaultyFiles, Files, MemoryFiles};
use std::collections::BTreeMap;
use std::sync::Arc;

const SMALL: NodeLogLimits = NodeLogLimits { segment_bytes: 32 << 10, segments_max: 3 };

fn node() -> SecretKey {
    key(77)
}

fn record(number: u64) -> NodeRecord {
    let standing = |height| Some(Standing { height: Height(height), root: Root(Hash([7; 32])) });
    let event = match number % 4 {
        0 => NodeEvent::RolledBack { to: Height(number) },
        1 => NodeEvent::Restored { source: cut(format!("archive {number}")) },
        2 => NodeEvent::Configured { before: None, after: Hash([9; 32]), settings: cut("a = 1".to_owned()) },
        _ => NodeEvent::MadeSnapshot { height: Height(number) },
    };
    NodeRecord {
        time: Timestamp(1_000 + number),
        who: cut("uid 1000".to_owned()),
        event,
        step: NodeStep::Done,
        before: standing(number),
        after: standing(number + 1),
    }
}

fn log(files: &(impl Files + Clone + 'static)) -> NodeLog {
    NodeLog::new(Arc::new(files.clone()), SMALL)
}

fn all(log: &NodeLog) -> (NodeVerdict, Vec<(u64, SignedNodeRecord)>) {
    let mut found = Vec::new();
    let verdict = log.verify(Some(node().public()), &mut |index, next| found.push((index, next.clone()))).unwrap();
    (verdict, found)
}

fn filled(count: u64) -> (MemoryFiles, NodeLog) {
    let files = MemoryFiles::new();
    let log = log(&files);
    (0..count).for_each(|number| assert_eq!(log.append(&node(), &record(number)).unwrap(), number));
    (files, log)
}

/// spec: AUDIT-10, AUDIT-11. What is appended is read back in order, signed by the node, by whoever opens the directory.
#[test]
fn what_is_appended_is_read_back_in_order() {
    let (files, _) = filled(9);
    let again = log(&files);
    assert_eq!(again.append(&node(), &record(9)).unwrap(), 9);
    let (verdict, found) = all(&again);
    let expected = NodeVerdict { key: Some(node().public()), first: 0, count: 10, verified: 10, fault: None, torn: 0 };
    assert_eq!(verdict, expected);
    assert!(found.iter().zip(0..).all(|((index, next), number)| *index == number && next.record == record(number)));
    let checkpoint = again.checkpoint().unwrap().unwrap();
    checkpoint.verify().unwrap();
    assert_eq!(checkpoint.state.log.count(), 10);
    let mut forged = checkpoint;
    forged.state.link.0[0] ^= 1;
    assert!(forged.verify().is_err());

    let empty = NodeLog::new(Arc::new(MemoryFiles::new()), NodeLogLimits::default());
    assert_eq!((empty.checkpoint().unwrap(), empty.start().unwrap()), (None, None));
    assert_eq!(empty.verify(None, &mut |_, _| panic!("nothing is there")).unwrap().count, 0);
    match again.append(&key(78), &record(10)) {
        Err(NodeLogError::OtherKey { expected, found }) => {
            assert_eq!((expected, found), (key(78).public(), node().public()));
        }
        other => panic!("{other:?}"),
    }
    let guard = files.lock().unwrap();
    assert!(matches!(again.append(&node(), &record(10)), Err(NodeLogError::InUse { .. })));
    drop(guard);
    let other = again.verify(Some(key(78).public()), &mut |_, _| {}).unwrap();
    assert_eq!(other.fault.unwrap().0, 0);
}

type Image = BTreeMap<String, Vec<u8>>;

fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut frames) = (bytes, Vec::new());
    while let Some((len, behind)) = rest.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        if len == 0 {
            break;
        }
        frames.push(behind[..len].to_vec());
        rest = &behind[len..];
    }
    frames
}

fn unframed(frames: &[Vec<u8>], len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = frames
        .iter()
        .flat_map(|frame| [&u32::try_from(frame.len()).unwrap().to_le_bytes()[..], frame].concat())
        .collect();
    bytes.resize(len, 0);
    bytes
}

fn verdict_of(image: &Image) -> NodeVerdict {
    all(&log(&MemoryFiles::from_image(image))).0
}

/// spec: AUDIT-13. A record that was edited, dropped, swapped with another or repeated is found, and the first place at which
/// the log is not what it was is named: 1,000 of 1,000. In any of several segments, the last record too.
#[test]
fn a_tampered_log_is_found_and_the_first_bad_record_named() {
    let (files, log) = filled(200);
    let honest = files.image();
    let (_, found) = all(&log);
    let segments: Vec<&String> = honest.keys().filter(|name| name.ends_with(".audit")).collect();
    assert!(segments.len() > 1, "{segments:?}");
    assert_eq!(verdict_of(&honest).fault, None);
    let (mut tampered, mut seed) = (0, 0u64);
    let mut state = 1;
    let mut below = |limit: usize| usize::try_from(splitmix64(&mut state) % limit as u64).unwrap();
    while tampered < 1_000 {
        seed += 1;
        let name = segments[below(segments.len())];
        let mut parts = frames(&honest[name]);
        let before = parts.clone();
        let records = parts.len() - 1;
        let (at, other) = (1 + below(records), 1 + below(records));
        match below(4) {
            0 => {
                let mut next = SignedNodeRecord::from_bytes(&parts[at]).unwrap();
                match below(3) {
                    0 => next.record.time.0 += 1,
                    1 => next.record.who = cut("nobody".to_owned()),
                    _ => next.record.after = None,
                }
                parts[at] = next.to_bytes();
            }
            1 => drop(parts.remove(at)),
            2 => parts.swap(at, other),
            _ => parts.insert(other, parts[at].clone()),
        }
        let differs = before.iter().zip(&parts).position(|(a, b)| a != b);
        let shorter = before.len().min(parts.len());
        let Some(place) = differs.or((before.len() != parts.len()).then_some(shorter)) else { continue };
        let len = honest[name].len();
        let bytes = unframed(&parts, len);
        if bytes.len() > len {
            continue;
        }
        tampered += 1;
        let mut image = honest.clone();
        image.insert(name.clone(), bytes);
        let first: u64 = name.strip_suffix(".audit").unwrap().parse().unwrap();
        let (index, what) = verdict_of(&image).fault.unwrap_or_else(|| panic!("round {seed}: it passed"));
        let repeated_last = place == before.len();
        assert!(
            index == first + place as u64 - 1 || repeated_last && index <= found.len() as u64,
            "round {seed}: record {index}, tampered at {place} of {name}: {what}"
        );
    }
}

/// spec: AUDIT-12, AUDIT-13. Files that are gone, cut, or set back are named, and so is a length that no frame has.
#[test]
fn files_that_are_gone_or_set_back_are_found() {
    let (files, log) = filled(330);
    let (honest, (_, found)) = (files.image(), all(&log));
    let names: Vec<String> = honest.keys().filter(|name| name.ends_with(".audit")).cloned().collect();
    let first = |at: usize| names[at].strip_suffix(".audit").unwrap().parse::<u64>().unwrap();
    let without = |gone: &str| {
        let mut image = honest.clone();
        image.remove(gone);
        verdict_of(&image).fault.unwrap()
    };
    assert_eq!(without(&names[0]).0, 0, "the first segment was not forgotten: it is absent");
    assert_eq!(without(&names[1]).0, first(1));
    assert_eq!(without(names.last().unwrap()).0, first(names.len() - 1));
    assert!(without("HEAD").1.contains("0 were acknowledged"));

    // What stood there before the last record, with and without the word of it.
    let (shorter, _) = filled(329);
    let mut image = shorter.image();
    assert_eq!(verdict_of(&image).fault, None, "a log that is set back whole is a log");
    image.insert("HEAD".to_owned(), honest["HEAD"].clone());
    assert_eq!(verdict_of(&image).fault.unwrap().0, 329);
    let mut walk = NodeWalk::begin(&self::log(&shorter).start().unwrap().unwrap()).unwrap();
    found.iter().for_each(|(_, next)| walk.take(next).unwrap());
    assert_eq!(walk.state(), &log.checkpoint().unwrap().unwrap().state, "which only a checkpoint tells");

    let last = names.last().unwrap();
    let mut image = honest.clone();
    let start = 4 + frames(&honest[last])[0].len();
    image.get_mut(last).unwrap()[start..start + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let (index, what) = verdict_of(&image).fault.unwrap();
    assert!(index == first(names.len() - 1) && what.contains("the limit is 8192"), "{what}");
    match self::log(&MemoryFiles::from_image(&image)).append(&node(), &record(1)) {
        Err(NodeLogError::Damaged { index: at, .. }) => assert_eq!(at, index),
        other => panic!("a damaged log was appended to: {other:?}"),
    }
    let mut image = honest.clone();
    image.insert("HEAD".to_owned(), vec![1, 0, 0, 0, 5]);
    assert!(verdict_of(&image).fault.unwrap().1.contains("HEAD"));
    for (head, expected) in [
        (vec![0; 9_000], "it has 9000 bytes"),
        (vec![0; 8], "no checkpoint"),
        ([&honest["HEAD"][..], &[0]].concat(), "no checkpoint"),
    ] {
        image.insert("HEAD".to_owned(), head);
        assert!(verdict_of(&image).fault.unwrap().1.contains(expected), "{expected}");
    }
    let begins_with: [(usize, &[u8], &str); 3] = [
        (0, &[0; 4], "no beginning"),
        (0, &u32::MAX.to_le_bytes(), "the beginning of its segment"),
        (start - 1, &[0x55], "what its segment begins with"),
    ];
    for (at, bytes, expected) in begins_with {
        let mut image = honest.clone();
        image.get_mut(last).unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
        let (index, what) = verdict_of(&image).fault.unwrap();
        assert!(index == first(names.len() - 1) && what.contains(expected), "{expected}: record {index}, {what}");
        let refused = self::log(&MemoryFiles::from_image(&image)).append(&node(), &record(1));
        assert!(matches!(refused, Err(NodeLogError::Damaged { index: at, .. }) if at == index), "{refused:?}");
    }
    let mut image = honest.clone();
    image.insert(last.clone(), vec![0; (16 << 20) + 1]);
    assert!(verdict_of(&image).fault.unwrap().1.contains("the limit is 16777216"));
}

/// spec: AUDIT-12. The power fails at any change to the disk: whatever was acknowledged is there, at most one more is, what is
/// left of another is cut and said, and the log goes on.
#[test]
fn power_cut_loses_no_acknowledged_record() {
    let calm = FaultyFiles::new(0);
    let live = |files: &FaultyFiles| -> u64 {
        let log = log(files);
        (0..130).take_while(|number| log.append(&node(), &record(*number)).is_ok()).count() as u64
    };
    assert_eq!(live(&calm), 130);
    let (changes, mut cut_tails, mut kept_one_more) = (calm.changes(), 0, 0);
    assert!(changes > 600, "{changes}");
    for at in (0..changes).step_by(4) {
        let files = FaultyFiles::new(at);
        files.fail_at(at, Fault::PowerCut);
        let acknowledged = live(&files);
        let files = files.after_power_cut(at);
        let log = log(&files);
        let (verdict, found) = all(&log);
        assert_eq!(verdict.fault, None, "cut {at}");
        let count = found.len() as u64;
        assert!(count == acknowledged || count == acknowledged + 1, "cut {at}: {count} of {acknowledged}");
        assert!(found.iter().zip(0..).all(|((_, next), number)| next.record == record(number)), "cut {at}");
        kept_one_more += u64::from(count > acknowledged);

        let index = log.append(&node(), &record(500)).unwrap();
        let (verdict, found) = all(&log);
        assert_eq!((verdict.fault, verdict.torn, verdict.count), (None, 0, index + 1), "cut {at}");
        let said = found.iter().any(|(_, next)| matches!(next.record.event, NodeEvent::CutTail { .. }));
        assert_eq!(index, count + u64::from(said), "cut {at}: nothing else came between");
        cut_tails += u64::from(said);
    }
    assert!(cut_tails > 0 && kept_one_more > 0, "{cut_tails} tails were cut, {kept_one_more} records kept");
}

/// A disk that fails, fills up, or stops half way costs the record that was being appended, and no other.
#[test]
fn a_failing_disk_costs_no_other_record() {
    let calm = FaultyFiles::new(0);
    let first = log(&calm);
    for number in 0..5 {
        first.append(&node(), &record(number)).unwrap();
    }
    let from = calm.changes();
    first.append(&node(), &record(5)).unwrap();
    for (at, fault) in
        (from..calm.changes()).flat_map(|at| [Fault::Io, Fault::NoSpace, Fault::ShortWrite].map(|f| (at, f)))
    {
        let files = FaultyFiles::new(at);
        files.fail_at(at, fault);
        let log = log(&files);
        for number in 0..5 {
            log.append(&node(), &record(number)).unwrap();
        }
        assert!(matches!(log.append(&node(), &record(5)), Err(NodeLogError::Io { .. })), "{fault:?} at {at}");
        log.append(&node(), &record(6)).unwrap();
        // A sync that failed is never repaired by a later one: what counts is what the disk has.
        let files = files.after_power_cut(at);
        let (verdict, found) = all(&self::log(&files));
        assert_eq!(verdict.fault, None, "{fault:?} at {at}");
        let ours: Vec<_> = found.iter().map(|(_, next)| next.record.clone()).collect();
        assert!((0..5).all(|number| ours.contains(&record(number))) && ours.contains(&record(6)), "{fault:?} at {at}");
    }
}

/// spec: AUDIT-12. The log stays within its segments; what it forgets it says first, and what is left still verifies.
#[test]
fn the_log_stays_small_and_says_what_it_forgets() {
    let files = MemoryFiles::new();
    let log = log(&files);
    for number in 0..900 {
        log.append(&node(), &record(number)).unwrap();
    }
    let segments = files.image().keys().filter(|name| name.ends_with(".audit")).count();
    assert_eq!(segments, 3);
    let (verdict, found) = all(&log);
    assert_eq!((verdict.fault.clone(), verdict.verified), (None, verdict.count - verdict.first));
    assert!(verdict.first > 0 && found[0].0 == verdict.first, "{verdict:?}");
    let forgot = found.iter().rev().find_map(|(_, next)| match next.record.event {
        NodeEvent::Forgot { first } => Some(first),
        _ => None,
    });
    assert_eq!(forgot, Some(verdict.first));
    // One segment more than the log says is gone.
    let mut image = files.image();
    image.remove(&format!("{:020}.audit", verdict.first));
    assert_eq!(verdict_of(&image).fault.unwrap().0, verdict.first);
}

/// What is longer than a record may be is cut at the border of a character; what claims to be longer is refused.
#[test]
fn texts_are_bounded() {
    let text = cut::<NODE_TEXT_BYTES_MAX>("ä".repeat(400));
    assert_eq!(text.len(), NODE_TEXT_BYTES_MAX);
    let long = NodeRecord { event: NodeEvent::Restored { source: text }, ..record(1) }.to_bytes();
    assert!(NodeRecord::from_bytes(&long).is_ok());
    let longest = NodeRecord {
        who: cut("x".repeat(500)),
        event: NodeEvent::Configured {
            before: Some(Hash([8; 32])),
            after: Hash([9; 32]),
            settings: cut("x".repeat(9_000)),
        },
        step: NodeStep::Failed { reason: cut("x".repeat(900)) },
        ..record(1)
    };
    let (_, log) = filled(1);
    assert_eq!(log.append(&node(), &longest).unwrap(), 1);
    assert_eq!(all(&log).1[1].1.record, longest);
    let mut longer = record(1);
    longer.who = cut("x".repeat(500));
    assert_eq!(longer.who.len(), 128);
    let bytes = [&0u64.to_bytes()[..], &[129], &[b'x'; 129]].concat();
    assert!(matches!(NodeRecord::from_bytes(&bytes), Err(DecodeError::TooLarge { limit: 128, .. })));
}

/// The part of `spec/vectors/audit.json` about a node's own log.
pub(crate) fn vectors() -> serde_json::Value {
    use serde_json::json;
    let mut state = NodeLogState::default();
    let records: Vec<_> = (0..4)
        .map(|number| {
            let record = record(number);
            state = state.after(&record);
            let checkpoint: NodeCheckpoint = state.clone().signed(&node());
            json!({
                "rules": ["AUDIT-10", "AUDIT-11"],
                "record": hex::encode(record.to_bytes()),
                "link": state.link.to_string(),
                "checkpoint": hex::encode(checkpoint.to_bytes()),
            })
        })
        .collect();
    let (files, _) = filled(2);
    let head = files.image().remove("HEAD").unwrap();
    let segment = files.image().remove(&format!("{:020}.audit", 0)).unwrap();
    let used = segment.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    json!({
        "seed": hex::encode([77; 32]), "records": records,
        "files": { "rule": "AUDIT-12", "head": hex::encode(head), "segment": hex::encode(&segment[..used]) },
    })
}
