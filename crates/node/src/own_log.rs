//! The node's own audit log, where a node and its commands put on record what they do to its state and settings.
//!
//! It lies in `audit/` of the home, beside the data: what takes the place of the data does not take the log with it. It is
//! signed with a key of its own, made with the first record. What cannot be undone is put on record before it is begun,
//! and not begun if that fails; what a node does by itself it does all the same, and says in its own log lines that the
//! record is missing. What the log is, is the ledger's: [`keelstone_ledger::NodeLog`]. Forms: `docs/audit.md`.

use crate::api::Chain;
use crate::audit;
use crate::clock::now;
use crate::exit::{Exit, Failure, causes};
use crate::home::Home;
use crate::keyfile;
use crate::newfile;
use crate::strict_json;
use keelstone_codec::{Decode, Encode as _, Height, Root, Tag, tagged};
use keelstone_execution::PublicKey;
use keelstone_ledger::{
    NodeCheckpoint, NodeEvent, NodeLog, NodeLogError, NodeLogLimits, NodeRecord, NodeStep, NodeVerdict, NodeWalk,
    SecretKey, SignedNodeRecord, Standing, cut,
};
use keelstone_store::files::Directory;
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a record waits for another process to write its own.
const PATIENCE: Duration = Duration::from_secs(10);
/// The form of an export that this program writes and reads.
const EXPORT: u32 = 1;

/// What is on record of a mending that changed nothing.
pub(crate) const MENDED_NOTHING: &str = "nothing could be had again";

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// A user of this machine, by a command.
    User,
    /// A user of this machine, who asked the node that runs.
    Owner,
    /// The node by itself.
    Node,
}

impl Who {
    fn name(self) -> String {
        let uid = rustix::process::getuid().as_raw();
        match self {
            Self::User => format!("uid {uid}"),
            Self::Owner => "the owner, by the control socket".to_owned(),
            Self::Node => "the node".to_owned(),
        }
    }
}

/// The log of a home.
#[derive(Debug, Clone)]
pub(crate) struct OwnLog {
    home: Home,
}

impl From<NodeLogError> for Failure {
    fn from(error: NodeLogError) -> Self {
        let message = causes(&error);
        match error {
            NodeLogError::InUse { .. } => Self::new(Exit::InUse, message),
            NodeLogError::Damaged { .. } => Self::integrity(message)
                .hint("keelstone audit node verify names the first bad record; move audit/ away to begin another log"),
            NodeLogError::OtherKey { .. } => {
                Self::usage(message).hint("bring back audit/key.json, or move audit/ away")
            }
            _ => Self::error(message),
        }
    }
}

impl OwnLog {
    pub(crate) fn of(home: &Home) -> Self {
        Self { home: home.clone() }
    }

    /// The log to append to.
    fn log(&self) -> Result<NodeLog, Failure> {
        let path = self.home.own_log();
        newfile::create_private_dir(&path).map_err(|error| Failure::io(path.display(), &error))?;
        let files = Directory::existing(&path).map_err(|error| Failure::io(path.display(), &error))?;
        Ok(NodeLog::new(Arc::new(files), NodeLogLimits::default()))
    }

    /// The log to look at; none if there is none.
    fn there(&self) -> Result<Option<NodeLog>, Failure> {
        let path = self.home.own_log();
        match Directory::to_read(&path) {
            Ok(files) => {
                let log = NodeLog::new(Arc::new(files), NodeLogLimits::default());
                Ok(if log.is_begun()? { Some(log) } else { None })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::io(path.display(), &error)),
        }
    }

    /// The key it is signed with. Made under the log's lock, so that two processes do not make two.
    fn key(&self, log: &NodeLog) -> Result<SecretKey, Failure> {
        let path = self.home.own_log().join("key.json");
        if !path.exists() {
            let _guard = waited(|| log.lock())?;
            if !path.exists() {
                let failed = |error| Failure::io(format_args!("could not write {}", path.display()), &error);
                let key = SecretKey::generate().map_err(|error| Failure::io("no randomness for a new key", &error))?;
                keyfile::write_new(&path, &keyfile::Stored::plain(&key)).map_err(failed)?;
            }
        }
        // It signs what a node does while nobody is there.
        let none = || Failure::usage(format!("{} takes a passphrase, which nobody is there to give", path.display()));
        keyfile::read(&path)?.into_plain().ok_or_else(none)
    }

    /// Puts something on record.
    pub(crate) fn note(&self, who: Who, event: NodeEvent, step: NodeStep, stood: Stood) -> Result<(), Failure> {
        let Stood { before, after } = stood;
        let record = NodeRecord { time: now(), who: cut(who.name()), event, step, before, after };
        let log = self.log()?;
        let key = self.key(&log)?;
        // The log knows its files by their names alone.
        waited(|| log.append(&key, &record)).map(|_| ()).map_err(|failure| match failure.exit {
            Exit::Error => {
                Failure { message: format!("{}: {}", self.home.own_log().display(), failure.message), ..failure }
            }
            _ => failure,
        })
    }

    /// Puts on record what the node did by itself and cannot leave undone.
    pub(crate) fn told(&self, who: Who, event: NodeEvent, stood: Stood) {
        let kind = event.kind();
        if let Err(failure) = self.note(who, event, NodeStep::Done, stood) {
            lacks(kind, &failure);
        }
    }

    /// As [`Self::note`]. What a user does is not begun without a record; what a node does by itself it does all the same, and says
    /// in its own log lines that the record is missing.
    pub(crate) fn note_of(&self, who: Who, event: NodeEvent, step: NodeStep, stood: Stood) -> Result<(), Failure> {
        let kind = event.kind();
        match self.note(who, event, step, stood) {
            Err(failure) if who == Who::Node => {
                lacks(kind, &failure);
                Ok(())
            }
            noted => noted,
        }
    }

    /// Does what cannot be undone between two records: that it begins, and what it came to. `standing` says where the state
    /// stands.
    pub(crate) fn around<T>(
        &self,
        event: &NodeEvent,
        standing: impl Fn() -> Option<Standing>,
        act: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let before = standing();
        self.note(Who::User, event.clone(), NodeStep::Begun, Stood { before, after: None })?;
        let done = act();
        let step = match &done {
            Ok(_) => NodeStep::Done,
            Err(failure) => NodeStep::Failed { reason: cut(failure.message.clone()) },
        };
        let after = standing();
        match (done, self.note(Who::User, event.clone(), step, Stood { before, after })) {
            (Ok(done), Ok(())) => Ok(done),
            (Ok(_), Err(failure)) => {
                let message = format!("it is done, but could not be put on record: {}", failure.message);
                Err(Failure { message, ..failure })
            }
            (Err(failure), _) => Err(failure),
        }
    }

    /// Puts on record that a node begins to run with these settings, if they are others than those on record.
    pub(crate) fn configured(&self, changed: &[(String, String)]) -> Result<(), Failure> {
        const SETTINGS: Tag = Tag::new("node-audit/settings");
        let text = changed.iter().map(|(key, value)| format!("{key} = {value}\n")).collect::<String>();
        let after = tagged(SETTINGS, &text);
        let is_settings = |event: &NodeEvent| matches!(event, NodeEvent::Configured { .. });
        let last = self.there()?.map_or(Ok(None), |log| log.last(&is_settings))?;
        let before = match last.map(|record| record.event) {
            Some(NodeEvent::Configured { after, .. }) => Some(after),
            _ => None,
        };
        if before == Some(after) {
            return Ok(());
        }
        let event = NodeEvent::Configured { before, after, settings: cut(text) };
        self.note(Who::User, event, NodeStep::Done, Stood::default())
    }

    /// When the node last began to mend by itself, at most so many times, in milliseconds since 1970, whatever that came to.
    // spec: CHECK-10
    pub(crate) fn tried_mending(&self, count: usize) -> Result<Vec<u64>, Failure> {
        let wanted = |record: &NodeRecord| is_mending(record) && record.step == NodeStep::Begun;
        let tried = self.there()?.map_or_else(|| Ok(Vec::new()), |log| log.last_of(count, &wanted))?;
        Ok(tried.iter().map(|record| record.time.0).collect())
    }

    /// When the node last began to mend by itself, at most so many times, in milliseconds since 1970; but for mendings that came to
    /// [`MENDED_NOTHING`].
    // spec: CHECK-10
    pub(crate) fn begun_mending(&self, count: usize) -> Result<Vec<u64>, Failure> {
        let nothing = NodeEvent::Mended { what: cut(MENDED_NOTHING.to_owned()) };
        let wanted =
            |record: &NodeRecord| is_mending(record) && (record.step == NodeStep::Begun || record.event == nothing);
        let Some(log) = self.there()? else { return Ok(Vec::new()) };
        let mut asked = count;
        loop {
            let found = log.last_of(asked, &wanted)?;
            let is_all = found.len() < asked;
            let mut begun = Vec::new();
            for record in found {
                match record.step {
                    NodeStep::Begun => begun.push(record.time.0),
                    // One mends at a time, so it is the end of the last.
                    _ => drop(begun.pop()),
                }
            }
            if is_all || begun.len() >= count {
                begun.drain(..begun.len().saturating_sub(count));
                return Ok(begun);
            }
            asked = asked.saturating_mul(2);
        }
    }

    /// The height that the state had when a process last began or ended to use it, or by the last record that says one: the higher
    /// of them. None if nothing says one.
    ///
    /// # Errors
    /// An integrity failure if the log is damaged: what it said is not known then.
    // spec: AUDIT-16
    pub(crate) fn last_height(&self) -> Result<Option<Height>, Failure> {
        let height = |record: &NodeRecord| match record.event {
            NodeEvent::MadeSnapshot { height } => Some(height),
            _ => record.after.or(record.before).map(|stood| stood.height),
        };
        let mut last = None;
        let verdict = self.verify(None, &mut |_, next| last = height(&next.record).or(last))?;
        if let Some((index, what)) = verdict.and_then(|verdict| verdict.fault) {
            return Err(NodeLogError::Damaged { index, what }.into());
        }
        Ok(last.max(self.stood()?))
    }

    fn height_file(&self) -> PathBuf {
        self.home.own_log().join("HEIGHT")
    }

    /// The height in the file for that; none if there is none.
    fn stood(&self) -> Result<Option<Height>, Failure> {
        let path = self.height_file();
        match fs::read_to_string(&path) {
            Ok(text) => match text.strip_suffix('\n').and_then(|text| text.parse().ok()) {
                Some(height) => Ok(Some(Height(height))),
                None => Err(Failure::integrity(format!("{} names no height: {text:?}", path.display()))),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(Failure::integrity(format!("{} names no height", path.display())))
            }
            Err(error) => Err(Failure::io(path.display(), &error)),
        }
    }

    /// Notes where the state stands, beside the data, so that a home whose data is lost does not begin anew. It is no record: it is
    /// written at every start and stop, and only the last counts. Nothing fails for want of it.
    // spec: AUDIT-16
    pub(crate) fn stands_at(&self, height: Height) {
        // A home that is gone is not made again.
        if !self.home.data().exists() || matches!(self.stood(), Ok(Some(stood)) if stood == height) {
            return;
        }
        let path = self.home.own_log();
        let made = newfile::create_private_dir(&path);
        let written = made.and_then(|_| newfile::replace(&self.height_file(), format!("{height}\n").as_bytes()));
        if let Err(error) = written {
            tracing::error!(%error, "could not write {}", self.height_file().display());
        }
    }

    // ---- looking at it

    /// Verifies the log, and shows each record that is right; none if there is no log.
    pub(crate) fn verify(
        &self,
        key: Option<PublicKey>,
        each: &mut dyn FnMut(u64, &SignedNodeRecord),
    ) -> Result<Option<NodeVerdict>, Failure> {
        Ok(self.there()?.map(|log| log.verify(key, each)).transpose()?)
    }

    /// Where the log begins, and where it stands, as the node signed it; none if there is no log.
    pub(crate) fn ends(&self) -> Result<Option<(NodeCheckpoint, NodeCheckpoint)>, Failure> {
        let Some(log) = self.there()? else { return Ok(None) };
        Ok(log.start()?.zip(log.checkpoint()?))
    }
}

/// Says that a record is missing of what the node does all the same.
fn lacks(kind: &str, failure: &Failure) {
    tracing::error!(kind, %failure, "the node's audit log lacks a record");
}

/// Does what another process may keep from being done for some milliseconds.
fn waited<T>(what: impl Fn() -> Result<T, NodeLogError>) -> Result<T, Failure> {
    let started = Instant::now();
    loop {
        match what() {
            Err(NodeLogError::InUse { .. }) if started.elapsed() < PATIENCE => {
                // There is nothing to wait on but the lock.
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return Ok(done?),
        }
    }
}

/// Whether it is of a mending that the node began by itself.
fn is_mending(record: &NodeRecord) -> bool {
    record.who == cut(Who::Node.name()) && matches!(record.event, NodeEvent::Mended { .. })
}

/// Where the state stood, before and after.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stood {
    pub(crate) before: Option<Standing>,
    pub(crate) after: Option<Standing>,
}

/// Where a chain stands; none if it does not say.
pub(crate) fn standing(chain: &(impl Chain + ?Sized)) -> Option<Standing> {
    let status = chain.status().ok()?;
    Some(Standing { height: Height(status.height), root: Root::from_hex(&status.root).ok()? })
}

// ---- as JSON

fn stood(standing: &Option<Standing>) -> Value {
    standing.map_or(Value::Null, |standing| json!({ "height": standing.height.0, "root": standing.root.0 }))
}

fn said(event: &NodeEvent) -> Value {
    match event {
        NodeEvent::RolledBack { to } => json!({ "to": to.0 }),
        NodeEvent::PrunedStates { below } | NodeEvent::PrunedAudit { below } => json!({ "below": below.0 }),
        NodeEvent::Restored { source } => json!({ "source": source.to_string() }),
        NodeEvent::Rebuilt { to, into } => json!({ "to": to.0, "into": into.to_string() }),
        NodeEvent::TookBack { height } | NodeEvent::MadeSnapshot { height } | NodeEvent::RemovedSnapshot { height } => {
            json!({ "height": height.0 })
        }
        NodeEvent::Configured { before, after, settings } => {
            json!({ "before": before, "after": after, "settings": settings.lines().collect::<Vec<_>>() })
        }
        NodeEvent::CutTail { bytes } => json!({ "bytes": bytes }),
        NodeEvent::Forgot { first } => json!({ "first": first }),
        NodeEvent::Mended { what } => json!({ "what": what.to_string() }),
        NodeEvent::Recovered { how } => json!({ "how": how.to_string() }),
    }
}

/// A record as it is shown.
pub(crate) fn show(index: u64, record: &NodeRecord) -> Value {
    let (step, reason) = match &record.step {
        NodeStep::Begun => ("begun", None),
        NodeStep::Done => ("done", None),
        NodeStep::Failed { reason } => ("failed", Some(reason.to_string())),
    };
    json!({
        "index": index, "time": record.time.0, "who": record.who.to_string(), "kind": record.event.kind(),
        "step": step, "reason": reason, "said": said(&record.event), "before": stood(&record.before),
        "after": stood(&record.after),
    })
}

/// Where a log stands, as it is kept: what it says for people, and its bytes.
pub(crate) fn checkpoint_json(checkpoint: &NodeCheckpoint) -> Value {
    json!({
        "key": checkpoint.key, "count": checkpoint.state.log.count(), "link": checkpoint.state.link,
        "node_checkpoint": hex::encode(checkpoint.to_bytes()),
    })
}

fn decoded<T: Decode>(what: &str, value: Option<&Value>) -> Result<T, Failure> {
    let digits = value.and_then(Value::as_str).ok_or_else(|| Failure::usage(format!("there is no {what} in it")))?;
    audit::decoded(what, digits)
}

/// Reads a checkpoint that somebody kept. Its signature is verified, and what it says for people is what its bytes say.
pub(crate) fn read_checkpoint(text: &[u8]) -> Result<NodeCheckpoint, Failure> {
    let value: Value = strict_json::parse(text).map_err(|error| Failure::usage(format!("the checkpoint: {error}")))?;
    let checkpoint: NodeCheckpoint = decoded("node_checkpoint", value.get("node_checkpoint"))?;
    checkpoint.verify().map_err(|error| Failure::integrity(format!("the checkpoint: {error}")))?;
    match checkpoint_json(&checkpoint) == value {
        true => Ok(checkpoint),
        false => Err(Failure::integrity("the checkpoint file says something else than what was signed")),
    }
}

/// The first line of an export.
pub(crate) fn export_head(start: &NodeCheckpoint) -> Value {
    json!({ "node_audit_export": EXPORT, "from": start.state.log.count(), "start": checkpoint_json(start) })
}

/// The line of a record in an export.
pub(crate) fn export_line(index: u64, next: &SignedNodeRecord) -> Value {
    json!({ "entry": show(index, &next.record), "record": hex::encode(next.to_bytes()) })
}

/// The last line of an export: where the log stood after all of it.
pub(crate) fn export_end(end: &NodeCheckpoint) -> Value {
    json!({ "end": checkpoint_json(end) })
}

/// Follows an export line by line: each record with its signature must be the next, what it says for people must be what
/// its bytes say, and the last line must be where the log stands then. The first record that is wrong is in the verdict.
// spec: AUDIT-13
pub(crate) fn verify_export(
    mut lines: impl Iterator<Item = Result<String, Failure>>,
    key: Option<PublicKey>,
    each: &mut dyn FnMut(u64, &SignedNodeRecord),
) -> Result<NodeVerdict, Failure> {
    let head = lines.next().ok_or_else(|| Failure::integrity("the export is empty"))??;
    let head: Value =
        strict_json::parse(head.as_bytes()).map_err(|error| Failure::integrity(format!("line 1: {error}")))?;
    let start: NodeCheckpoint = decoded("start", head.pointer("/start/node_checkpoint"))
        .map_err(|failure| Failure::integrity(format!("line 1 is not the head of an export: {}", failure.message)))?;
    let mut walk = NodeWalk::begin(&start).map_err(|error| Failure::integrity(format!("line 1: {error}")))?;
    if export_head(&start) != head {
        return Err(Failure::integrity("line 1 says something else than what was signed"));
    }
    let first = walk.count();
    let mut verdict = NodeVerdict { key: Some(walk.key()), first, count: first, verified: 0, fault: None, torn: 0 };
    if let Some(key) = key.filter(|key| *key != walk.key()) {
        verdict.fault = Some((first, format!("the log is signed by {}, not by {key}", walk.key())));
        return Ok(verdict);
    }
    let mut ended = false;
    for line in lines {
        let index = walk.count();
        let line = match line {
            Err(failure) if failure.exit == Exit::Integrity => {
                verdict.fault = Some((index, failure.message));
                break;
            }
            line => line?,
        };
        let what = match strict_json::parse::<Value>(line.as_bytes()) {
            _ if ended => "a line follows the last".to_owned(),
            Err(error) => format!("the line is no JSON: {error}"),
            Ok(value) if value.get("end").is_some() => {
                match decoded::<NodeCheckpoint>("end", value.pointer("/end/node_checkpoint")) {
                    Err(failure) => failure.message,
                    Ok(end) if (&end.state, end.key) != (walk.state(), walk.key()) || export_end(&end) != value => {
                        "the last line is not where the log stands".to_owned()
                    }
                    // Whoever keeps that line keeps it for a checkpoint.
                    Ok(end) => match end.verify() {
                        Ok(()) => {
                            ended = true;
                            continue;
                        }
                        Err(error) => format!("the last line: {error}"),
                    },
                }
            }
            Ok(value) => match decoded::<SignedNodeRecord>("record", value.get("record")) {
                Err(failure) => failure.message,
                Ok(next) if export_line(index, &next) != value => {
                    "the line says something else than the record".to_owned()
                }
                Ok(next) => match walk.take(&next) {
                    Ok(()) => {
                        each(index, &next);
                        verdict.verified += 1;
                        continue;
                    }
                    Err(error) => format!("it is not the next one: {error}"),
                },
            },
        };
        verdict.fault = Some((index, what));
        break;
    }
    verdict.count = walk.count();
    if verdict.fault.is_none() && !ended {
        verdict.fault = Some((walk.count(), "the export ends before the log".to_owned()));
    }
    Ok(verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (tempfile::TempDir, OwnLog) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = OwnLog::of(&Home::new(dir.path().to_owned()));
        (dir, log)
    }

    fn records(log: &OwnLog) -> Vec<NodeRecord> {
        let mut records = Vec::new();
        let verdict = log.verify(None, &mut |_, next| records.push(next.record.clone())).expect("it can be read");
        assert_eq!(verdict.expect("there is one").fault, None);
        records
    }

    /// What cannot be undone is on record before it is begun, and with what it came to; and is not begun without a record.
    #[test]
    fn what_cannot_be_undone_stands_between_two_records() {
        let (dir, log) = log();
        assert!(log.verify(None, &mut |_, _| {}).expect("nothing there").is_none());
        let event = NodeEvent::RolledBack { to: Height(3) };
        let standing = || Some(Standing { height: Height(9), root: Root(keelstone_codec::Hash([1; 32])) });
        let done = log.around(&event, standing, || {
            let begun = records(&log);
            assert_eq!((begun.len(), &begun[0].step), (1, &NodeStep::Begun));
            Ok(7)
        });
        assert_eq!(done.expect("it was done"), 7);
        let failed = log.around(&event, standing, || Err::<(), _>(Failure::integrity("damaged")));
        assert_eq!(failed.expect_err("it failed").message, "damaged");
        let steps: Vec<_> = records(&log).into_iter().map(|record| record.step).collect();
        let reason = cut("damaged".to_owned());
        assert_eq!(steps, [NodeStep::Begun, NodeStep::Done, NodeStep::Begun, NodeStep::Failed { reason }]);

        std::fs::write(dir.path().join("audit").join("HEAD"), "damaged").expect("written");
        let refused = log.around(&event, standing, || -> Result<(), Failure> { panic!("it was begun") });
        assert_eq!(refused.expect_err("there is no record of it").exit, Exit::Integrity);
    }

    /// CHECK-10. Beginnings of mendings are counted, also of one that was cut off, but for those that changed nothing, however many
    /// there are.
    #[test]
    fn a_mending_that_changed_nothing_is_not_counted() {
        let (_dir, log) = log();
        let note = |who, what: &str, step| {
            log.note(who, NodeEvent::Mended { what: cut(what.to_owned()) }, step, Stood::default()).expect("on record");
        };
        let failed = || NodeStep::Failed { reason: cut("1 damaged still".to_owned()) };
        let counted = || log.begun_mending(3).expect("it can be read").len();
        let tried = || log.tried_mending(12).expect("it can be read").len();
        assert_eq!((counted(), tried()), (0, 0));
        note(Who::Node, "1 damaged", NodeStep::Begun);
        note(Who::Node, "3 entries", failed());
        note(Who::Owner, "1 damaged", NodeStep::Begun);
        note(Who::Owner, "1 sectors", NodeStep::Done);
        assert_eq!((counted(), tried()), (1, 1));
        for _ in 0..20 {
            note(Who::Node, "1 damaged", NodeStep::Begun);
            assert_eq!(counted(), 2, "until it is known what it came to");
            note(Who::Node, MENDED_NOTHING, failed());
            assert_eq!(counted(), 1);
        }
        assert_eq!(tried(), 12, "no more are asked for, and these are tries, too");
        for expected in [2, 3, 3] {
            note(Who::Node, "1 damaged", NodeStep::Begun);
            assert_eq!(counted(), expected, "cut off");
        }
    }

    /// Settings are on record once, until they are others.
    #[test]
    fn settings_are_on_record_when_they_change() {
        let (_dir, log) = log();
        let with = |value: &str| vec![("http.listen".to_owned(), value.to_owned())];
        for settings in [&with("a"), &with("a"), &with("b"), &with("b"), &with("a"), &Vec::new()] {
            log.configured(settings).expect("put on record");
        }
        let records = records(&log);
        assert_eq!(records.len(), 4);
        let mut last = None;
        for record in records {
            let NodeEvent::Configured { before, after, .. } = record.event else { panic!("{record:?}") };
            assert_eq!(before, last);
            last = Some(after);
        }
    }

    /// Several that write at once wait for one another.
    #[test]
    fn records_of_several_at_once_are_all_there() {
        let (_dir, log) = log();
        std::thread::scope(|threads| {
            for height in 0..4 {
                let log = log.clone();
                threads.spawn(move || {
                    let event = NodeEvent::MadeSnapshot { height: Height(height) };
                    log.note(Who::Node, event, NodeStep::Done, Stood::default()).expect("put on record");
                });
            }
        });
        assert_eq!(records(&log).len(), 4);
    }

    /// spec: AUDIT-13. Whoever keeps the last line of an export keeps it for a checkpoint: the node signed it.
    #[test]
    fn an_export_ends_with_what_the_node_signed() {
        let (_dir, log) = log();
        let event = NodeEvent::MadeSnapshot { height: Height(3) };
        log.note(Who::Node, event, NodeStep::Done, Stood::default()).expect("put on record");
        let mut text = Vec::new();
        log.verify(None, &mut |index, next| text.push(export_line(index, next))).expect("it can be read");
        let (start, end) = log.ends().expect("it can be read").expect("there is one");
        text.insert(0, export_head(&start));
        let fault = |end: &NodeCheckpoint| {
            let lines = text.iter().chain([&export_end(end)]).map(|line| Ok(line.to_string())).collect::<Vec<_>>();
            verify_export(lines.into_iter(), None, &mut |_, _| {}).expect("an export").fault
        };
        assert_eq!(fault(&end), None);
        let mut forged = end;
        forged.signature.0[5] ^= 1;
        let (index, what) = fault(&forged).expect("nobody signed it");
        assert!(index == 1 && what.starts_with("the last line"), "{index}: {what}");
    }
}
