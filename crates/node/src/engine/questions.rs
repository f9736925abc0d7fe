//! What a chain in this process answers whoever asks.

use super::{Engine as _, Local};
use crate::api::{self, Chain, ENTRIES_BYTES_MAX, Page, Refusal};
use crate::audit;
use crate::bundle::{show_bundle, show_continuation, show_operation, show_operation_proof, show_receipt};
use crate::call;
use crate::clock::now;
use keelstone_codec::{Decode as _, Encode as _, Hash, Height, Key, Namespace, Root, StateHash};
use keelstone_execution::{BundleId, PublicKey, Registry, Session, SessionId, When};
use keelstone_ledger::{
    ChangedBy, Foreseen, KeyChange, LedgerError, LoggedRecord, SignedTransaction, Transaction, TxId, Witness, xian,
};
use keelstone_tree::{Hasher, Query, Read as _};
use std::sync::{MutexGuard, TryLockError};

/// Bytes of a witness that is given out: in hexadecimal it has to fit into an answer.
const WITNESS_BYTES_MAX: usize = 24 << 20;

/// What is asked about a transaction that nobody signed or pays for.
impl<H: Hasher> Local<H> {
    /// The transaction in the bytes of one, signed or not.
    fn asked_about(&self, transaction: &[u8]) -> Result<Transaction, Refusal> {
        let limit = self.ledger().limits()?.transaction_bytes_max as usize;
        if transaction.len() > limit {
            return Err(Refusal::Bad(format!("a transaction has at most {limit} bytes")));
        }
        let signed = SignedTransaction::from_bytes(transaction).map(|signed| signed.transaction);
        signed
            .or_else(|_| Transaction::from_bytes(transaction))
            .map_err(|error| Refusal::Bad(format!("the bytes are no transaction: {error}")))
    }

    /// The right to run one: it costs what running the bundle costs, and nobody pays for it.
    fn one_question(&self) -> Result<MutexGuard<'_, ()>, Refusal> {
        match self.witnessing.try_lock() {
            Ok(one) => Ok(one),
            // Whoever met a bug on the way runs none any more.
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(Refusal::Busy("another witness is being made, or another transaction run dry".to_owned()))
            }
        }
    }
}

impl<H: Hasher> Chain for Local<H> {
    fn status(&self) -> Result<api::Status, Refusal> {
        let view = self.ledger().view();
        let (totals, pool) = (view.totals(), self.ledger().pool());
        Ok(api::Status {
            chain_id: self.ledger().facts().chain_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            application: None,
            hasher: H::KIND.to_string(),
            genesis_hash: self.ledger().genesis_hash().to_string(),
            interface: self.interface.to_string(),
            height: view.height().unwrap_or_default().0,
            lowest_height: self.lowest().0,
            root: view.root().0.to_string(),
            time: self.ledger().time().0,
            limits: Some(self.ledger().limits()?),
            entries: totals.count,
            entry_bytes: totals.bytes,
            waiting: u64::try_from(pool.count).unwrap_or(u64::MAX),
            ready: u64::try_from(pool.ready).unwrap_or(u64::MAX),
            scrub: Some(self.scrub_standing().into()),
            snapshots: None,
            failed: None,
            following: None,
            engine: None,
            api: None,
        })
    }

    fn submit(&self, transaction: &[u8]) -> Result<api::Submitted, Refusal> {
        let id = match self.take_in(transaction) {
            // Whoever did not hear the answer sends it again, and it can take effect only once.
            Err(refusal @ Refusal::Refused { .. }) => self.had(transaction)?.ok_or(refusal)?,
            taken => taken?,
        };
        Ok(api::Submitted { id: id.to_string() })
    }

    fn entry(&self, namespace: &Namespace, key: &Key, at: Option<Height>, prove: bool) -> Result<api::Entry, Refusal> {
        let view = self.view(at)?;
        let value = view.get(namespace, key)?;
        let proof = match prove {
            true => Some(view.prove(&[Query::Key(namespace.clone(), key.clone())])?),
            false => None,
        };
        Ok(api::Entry {
            namespace: namespace.to_string(),
            key: hex::encode(key),
            height: view.height().unwrap_or_default().0,
            root: view.root().0.to_string(),
            hasher: H::KIND.to_string(),
            text: value.as_ref().and_then(|value| readable(self.registry(), namespace, key, value)),
            value: value.map(|value| hex::encode(&value)),
            proof: proof.map(|proof| hex::encode(proof.as_bytes())),
        })
    }

    fn entries(
        &self,
        namespace: &Namespace,
        page: &Page,
        at: Option<Height>,
        prove: bool,
    ) -> Result<api::Entries, Refusal> {
        let view = self.view(at)?;
        let (mut entries, mut bytes, mut last, mut more) = (Vec::new(), 0, None, false);
        for found in view.scan(namespace, page.range()) {
            let (key, value) = found?;
            if entries.len() == page.limit || bytes > ENTRIES_BYTES_MAX {
                more = true;
                break;
            }
            bytes += key.len() + value.len();
            entries.push(api::Pair { key: hex::encode(&key), value: hex::encode(&value) });
            last = Some(key);
        }
        let last = last.filter(|_| more);
        let proof = match prove {
            true => {
                let range = page.range_to(last.as_deref());
                let proof = view.prove(&[Query::Range(namespace.clone(), range.clone())])?;
                Some(api::RangeProof {
                    namespace: namespace.to_string(),
                    start: hex::encode(&range.start),
                    end: range.end.map(hex::encode),
                    hasher: H::KIND.to_string(),
                    proof: hex::encode(proof.as_bytes()),
                })
            }
            false => None,
        };
        Ok(api::Entries {
            height: view.height().unwrap_or_default().0,
            root: view.root().0.to_string(),
            entries,
            rows: None,
            next: last.map(hex::encode),
            proof,
        })
    }

    fn lookup(&self, by: api::By, of: &str, page: &Page) -> Result<api::Entries, Refusal> {
        let view = self.ledger().view();
        let found = self.indexes.find(&view, view.root(), by, of, page)?;
        let (mut entries, mut bytes, mut more) = (Vec::new(), 0, found.more);
        for key in found.keys {
            if bytes > ENTRIES_BYTES_MAX {
                more = true;
                break;
            }
            let Some(value) = view.get(&found.namespace, &key)? else { continue };
            bytes += key.len() + value.len();
            entries.push(api::Pair { key: hex::encode(&key), value: hex::encode(&value) });
        }
        let next = if more { entries.last().map(|pair| pair.key.clone()) } else { None };
        let height = view.height().unwrap_or_default().0;
        Ok(api::Entries { height, root: view.root().0.to_string(), entries, rows: None, next, proof: None })
    }

    fn block(&self, height: Option<Height>) -> Result<api::Block, Refusal> {
        let height = height.unwrap_or_else(|| self.ledger().height());
        let header = self.ledger().header(height).map_err(|error| self.no_block(error))?;
        let block = self.ledger().block(height)?;
        let continuations = self.ledger().continuations(height)?;
        let record = header.record.as_ref();
        let previous_root = match record {
            Some(record) => Some(record.previous_root),
            // A block without a record changed nothing, so the root before it is the root after it.
            None => header.root,
        };
        let text = |root: Option<Root>| root.map(|root| root.0.to_string());
        Ok(api::Block {
            height: height.0,
            time: header.time.0,
            proposer: record.map(|record| record.proposer.to_string()),
            root: text(header.root),
            previous_root: text(previous_root),
            record: record.map(|record| hex::encode(record.to_bytes())),
            record_hash: record.map(|record| record.hash().to_string()),
            previous_record: record.map(|record| record.previous_record.to_string()),
            transactions_root: record.map(|record| record.transactions_root.to_string()),
            receipts_root: record.map(|record| record.receipts_root.to_string()),
            diff_digest: record.map(|record| record.diff.digest.to_string()),
            certificate: self.ledger().certificate(height)?.map(hex::encode),
            transactions: block.transactions.iter().map(|transaction| transaction.id().to_string()).collect(),
            continuations: continuations.iter().map(|c| show_continuation(self.registry(), c)).collect(),
        })
    }

    fn transaction(&self, id: &Hash) -> Result<api::Transaction, Refusal> {
        let id = TxId(*id);
        let located = match self.ledger().transaction(&id) {
            Ok(Some(located)) => located,
            // The body of a block is written before the block counts, and it may never come to that.
            Ok(None) | Err(LedgerError::NotYet { .. }) => {
                return Err(match self.ledger().waiting(&id) {
                    Some(_) => Refusal::Waiting(id.0),
                    None => Refusal::NotFound(self.no_transaction(&id)?),
                });
            }
            Err(error) => return Err(error.into()),
        };
        let transaction = &located.transaction.transaction;
        let operations = transaction.bundle.operations();
        let (place, receipt_place) = &located.places;
        let receipt = show_receipt(self.registry(), &located.receipt, located.height, located.index);
        Ok(api::Transaction {
            id: id.to_string(),
            sender: transaction.sender.to_string(),
            nonce: transaction.nonce,
            expiry_height: transaction.expiry_height.0,
            session: transaction.session.map(|session| session.to_string()),
            operations: operations.iter().map(|operation| show_operation(self.registry(), operation)).collect(),
            transaction: hex::encode(located.transaction.to_bytes()),
            place: hex::encode(place.to_bytes()),
            receipt: api::Receipt {
                receipt: Some(hex::encode(located.receipt.to_bytes())),
                place: Some(hex::encode(receipt_place.to_bytes())),
                ..receipt
            },
        })
    }

    fn account(&self, key: &PublicKey) -> Result<api::Account, Refusal> {
        let nonce = self.ledger().next_nonce(key)?.ok_or_else(|| {
            Refusal::NotFound(format!("{key} cannot send: no nonce follows the one that was imported"))
        })?;
        let Session { state_hash, sequence, .. } = self.register().root(key)?;
        Ok(api::Account { key: key.to_string(), nonce, state_hash: state_hash.to_string(), sequence })
    }

    fn session(&self, id: &SessionId) -> Result<api::Session, Refusal> {
        self.register().find(*id)
    }

    fn sessions(&self, wanted: &api::SessionsWanted) -> Result<api::SessionList, Refusal> {
        self.register().list(wanted)
    }

    fn bundle(&self, id: &Hash) -> Result<api::BundleStatus, Refusal> {
        let id = BundleId(*id);
        let record = self.ledger().bundle(&id)?;
        let record = record.ok_or_else(|| Refusal::NotFound(format!("there is no async bundle {id}")))?;
        Ok(show_bundle(&id, &record))
    }

    fn bundles(&self) -> Result<Vec<api::BundleStatus>, Refusal> {
        Ok(self.ledger().bundles()?.iter().map(|(id, record)| show_bundle(id, record)).collect())
    }

    fn witness(&self, transaction: &[u8]) -> Result<api::Witness, Refusal> {
        let (ledger, transaction, _one) = (self.ledger(), self.asked_about(transaction)?, self.one_question()?);
        let Witness { setting, proof } = ledger.witness(&transaction, ledger.time())?;
        if proof.len() > WITNESS_BYTES_MAX {
            return Err(Refusal::Bad(format!(
                "its witness has {} bytes, the limit is {WITNESS_BYTES_MAX}",
                proof.len()
            )));
        }
        Ok(api::Witness {
            chain_id: ledger.facts().chain_id.to_string(),
            hasher: H::KIND.to_string(),
            root: setting.old_root.to_string(),
            height: setting.height.0,
            time: setting.time.0,
            proposer: setting.proposer.to_string(),
            proof: hex::encode(proof),
        })
    }

    fn dry_run(&self, transaction: &[u8]) -> Result<api::DryRun, Refusal> {
        let (ledger, transaction, _one) = (self.ledger(), self.asked_about(transaction)?, self.one_question()?);
        let (setting, Foreseen { receipt, continuations, changes }) = ledger.dry_run(&transaction, now())?;
        Ok(api::DryRun {
            root: setting.old_root.to_string(),
            time: setting.time.0,
            entries_changed: changes.len() as u64,
            bytes_changed: changes.bytes(),
            receipt: show_receipt(self.registry(), &receipt, setting.height, 0),
            continuations: continuations.iter().map(|one| show_continuation(self.registry(), one)).collect(),
        })
    }

    fn operation_proof(
        &self,
        bundle: &Hash,
        index: u32,
        at: Option<api::HookAt>,
    ) -> Result<api::OperationAnswer, Refusal> {
        let (ledger, bundle) = (self.ledger(), BundleId(*bundle));
        let (proof, what) = match (When::of(&bundle), at) {
            (Some(when), Some(api::HookAt::Block(block))) if !when.is_of_transaction() => {
                let what =
                    format!("the chain did nothing by itself as number {index} of {} in block {block}", when.name());
                (ledger.hook_proof(block, when, None, index)?, what)
            }
            (Some(when), Some(api::HookAt::Transaction(id))) if when.is_of_transaction() => {
                let what = format!("the chain did nothing by itself as number {index} of {} {id}", when.name());
                let id = TxId(id);
                let block = ledger.transaction(&id)?.map(|located| located.height);
                let proof = block.map(|block| ledger.hook_proof(block, when, Some(id), index)).transpose()?;
                (proof.flatten(), what)
            }
            (Some(when), _) if when.is_of_transaction() => {
                let what = format!("{} is of every transaction: say which, with transaction", when.name());
                return Err(Refusal::Bad(what));
            }
            (Some(when), _) => {
                let what = format!("{} is in every block: say which, with block", when.name());
                return Err(Refusal::Bad(what));
            }
            (None, Some(_)) => {
                let what = "a block or a transaction is said only for what the chain does by itself: leave it out for a bundle";
                return Err(Refusal::Bad(what.to_owned()));
            }
            (None, None) => {
                (ledger.operation_proof(&bundle, index)?, format!("no operation {index} of {bundle} took effect"))
            }
        };
        Ok(show_operation_proof(self.registry(), &proof.ok_or(Refusal::NotFound(what))?))
    }

    fn audit(&self, wanted: &api::AuditWanted) -> Result<api::Audit, Refusal> {
        wanted.check().map_err(Refusal::Bad)?;
        let ledger = self.ledger();
        let kept = ledger.audit_range()?;
        let from = match (wanted.from, wanted.height) {
            (Some(from), _) => from,
            (None, Some(height)) => ledger.audit_place(height)?,
            (None, None) => kept.start,
        };
        // Behind the records of the one height that is wanted there are no more of them.
        let above = wanted.height.and_then(|height| height.0.checked_add(1)).map(Height);
        let end = above.map_or(Ok(kept.end), |above| ledger.audit_place(above))?;
        let (found, next) = match from < end {
            true => ledger.audit_records(from, wanted.limit, &|record| wanted.picks(record))?,
            false => (Vec::new(), None),
        };
        let records = found.iter().map(|logged| audit::show(self.registry(), logged)).collect();
        Ok(api::Audit { first: kept.start, count: kept.end, records, next: next.filter(|next| *next < end) })
    }

    fn audit_proof(&self, index: u64) -> Result<api::AuditAnswer, Refusal> {
        let proof = self.ledger().audit_proof(index)?;
        let proof = proof.ok_or_else(|| Refusal::NotFound(format!("there is no audit record {index} yet")))?;
        Ok(audit::show_proof(self.registry(), &proof, H::KIND))
    }

    fn audit_checkpoint(&self, since: Option<u64>) -> Result<api::AuditCheckpoint, Refusal> {
        let ledger = self.ledger();
        let (checkpoint, state) = ledger.prove_checkpoint()?;
        let fewer = |count| Refusal::NotFound(format!("the audit log has fewer than {count} records"));
        let since = match since {
            None => None,
            Some(count) => Some((count, ledger.prove_since(&checkpoint, count)?.ok_or_else(|| fewer(count))?)),
        };
        Ok(audit::show_checkpoint((&checkpoint, &state), since, H::KIND.name()))
    }

    fn history(
        &self,
        namespace: &Namespace,
        key: &Key,
        (from, to): (Option<Height>, Option<Height>),
        limit: usize,
    ) -> Result<api::History, Refusal> {
        let ledger = self.ledger();
        let from = from.unwrap_or_else(|| self.lowest());
        // A first height above the last of the chain is not the same mistake as one above the last that was given.
        let heights = from..=to.unwrap_or_else(|| ledger.height().max(from));
        if heights.is_empty() {
            return Err(Refusal::Bad(format!("{} is above {}", heights.start(), heights.end())));
        }
        let history = ledger.key_history(namespace, key, heights, limit).map_err(|error| match error {
            LedgerError::NotYet { height, last } => {
                Refusal::Height { asked: height.0, lowest: self.lowest().0, highest: last.0 }
            }
            error => error.into(),
        })?;
        let registry = self.registry();
        let change = |change: KeyChange| {
            let (by, operations) = match change.by {
                ChangedBy::Operations(operations) => ("operation", operations),
                ChangedBy::Chain => ("chain", Vec::new()),
                ChangedBy::Unknown => ("unknown", Vec::new()),
            };
            let operation = |(state_hash, logged): (StateHash, Option<LoggedRecord>)| api::ChangeOperation {
                state_hash: state_hash.0.to_string(),
                record: logged.map(|logged| audit::show(registry, &logged)),
            };
            api::Change {
                height: change.height.0,
                before: change.before.map(|before| before.to_string()),
                text: change.value.as_ref().and_then(|value| readable(registry, namespace, key, value)),
                value: change.value.map(|value| hex::encode(&value)),
                by: by.to_owned(),
                operations: operations.into_iter().map(operation).collect(),
                root: change.proof.0.0.to_string(),
                proof: hex::encode(change.proof.1),
            }
        };
        Ok(api::History {
            namespace: namespace.to_string(),
            key: hex::encode(key),
            hasher: H::KIND.to_string(),
            from: history.heights.start().0,
            to: history.heights.end().0,
            changes: history.changes.into_iter().map(change).collect(),
            next: history.next.map(|next| next.0),
        })
    }

    fn functions(&self) -> Result<Vec<api::Function>, Refusal> {
        let function = |hook: Option<When>, entry: &keelstone_execution::Entry| api::Function {
            hook: hook.map(|when| when.name().to_owned()),
            first_height: Some(entry.heights.start().0).filter(|first| *first > 0),
            last_height: Some(entry.heights.end().0).filter(|last| *last < u64::MAX),
            name: entry.label(),
            hash: entry.hash.to_string(),
            needs: entry.needs.iter().map(|capability| capability.as_str().to_owned()).collect(),
            args: call::outline(&(entry.args)()),
            output: call::outline(&(entry.output)()),
        };
        let called = self.registry().functions().into_iter().map(|entry| function(None, entry));
        let hooks = self.registry().hooks().map(|(when, entry)| function(Some(*when), entry));
        Ok(called.chain(hooks).collect())
    }
}

/// A value as text: an imported entry as its network writes it, an entry of a collection as JSON, else what is printable
/// text already.
fn readable(registry: &Registry, namespace: &Namespace, key: &Key, value: &[u8]) -> Option<String> {
    if namespace.as_str() == xian::CONTRACTS {
        let name = std::str::from_utf8(key).unwrap_or_default();
        return match xian::Record::from_bytes(value).ok()? {
            xian::Record::Long(_, value) => Some(value.to_pretty()),
            record => record.value_of(name).map(|value| value.to_pretty()),
        };
    }
    if let Some(shown) = registry.value_shape(namespace, key).and_then(|shape| call::shown(&shape, value).ok()) {
        return Some(shown);
    }
    let text = std::str::from_utf8(value).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}
