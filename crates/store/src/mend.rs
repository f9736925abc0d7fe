//! Mending: what is damaged of an open store is had again, and nothing else is touched.
//!
//! What a lost piece must be is known: its parent holds its hash, and the parents lead up to the root this store stands at.
//! So it does not matter who has it. A page may still be in memory; else its entries are asked of whoever may have them
//! ([`Supplier`]), grown into pages, and compared with that hash before a byte is written. Then they are written as
//! everything is: values and pages behind what is there, a superblock that names them, twice, so that neither slot leads to
//! the damage any more. A crash in between leaves the store as it was.
//!
//! What is left is sectors that the state does without. Those of headers and what was never written are known; a sector of
//! which one byte changed is told by its checksum, and of the log, by the hash of its record. In a segment of values, those
//! that were had again are known, and the rest only history may refer to, which proves each by its hash when it is read: such
//! a sector is given up, with what is known of it in its place. Only a sector that is damaged is
//! written over, and a sector is written whole or not at all, so that loses nothing. What cannot be proven of the log is left as
//! it is, and named: it is history, and [`Store::repair`](crate::Store::repair) says what there is to lose of it.
//!
//! Rules: `spec/store.md`, STORE-16.

use crate::StoreError;
use crate::appender::Appender;
use crate::files::SECTOR_BYTES;
use crate::flush::Upkeep;
use crate::log;
use crate::look::{self, Before};
use crate::recover::open_aside;
use crate::sector::{Found, PAYLOAD, PAYLOAD_BYTES, Sector};
use crate::segment::{Kind, Segment, SegmentId, Spot};
use crate::segments::Segments;
use crate::shared::{Shared, Writer};
use keelstone_codec::{Bytes, Encode as _, Height, Key, Namespace, Root, Value};
use keelstone_tree::{Build, Entry, Hasher, KeyRange, Leaf, Lost, PageAt, Place, Rewrite, Totals, Tree};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

/// Entries looked at in one slice. A flush waits for one slice at most.
const SLICE_ENTRIES: usize = 20_000;
/// Pieces had again in one mending; what is beyond is left to another, or to a recovery.
const PIECES_MAX: usize = 4096;
/// Bytes of keys and values of one piece that is had again from elsewhere: above, a recovery is the way.
const PIECE_BYTES_MAX: u64 = 64 << 20;
/// Damaged sectors of one segment that are asked what they were: each takes the processor some milliseconds, and no flush can begin
/// meanwhile. A segment of which more is damaged did not lose single bytes.
const CORRECTED_MAX: usize = 256;
/// What was below a damaged page is seen once that page is whole: so often it is looked again.
const ROUNDS_MAX: usize = 8;
/// Blocks of values kept in memory of what is looked at.
const CACHE_BYTES: u64 = 1 << 20;

/// A piece of the state that is lost here and wanted from elsewhere.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The version it is lost of: this store's own height and root. The piece of another version will do, if it is the same.
    pub version: (Height, Root),
    /// In which namespace.
    pub namespace: Namespace,
    /// All entries of these keys are wanted.
    pub range: KeyRange,
    /// How many they are, with the bytes of their keys and values.
    pub totals: Totals,
}

/// Looks at an offer, and says whether it was the one that is wanted.
pub type Accept<'a> = &'a mut dyn FnMut(&[(Key, Value)]) -> bool;

/// Whoever may have what is lost: peers, snapshots, other stores. None of it is believed.
pub trait Supplier {
    /// Offers what there is of a piece, one offer after the other, until `take` says that it was the one that is wanted.
    fn offer(&mut self, wanted: &Wanted, take: Accept<'_>);
}

/// Nobody has anything.
impl Supplier for () {
    fn offer(&mut self, _: &Wanted, _: Accept<'_>) {}
}

/// What a mending came to.
#[derive(Debug, Clone, Default)]
pub struct Mended {
    /// Entries that were written anew from what a [`Supplier`] had.
    pub supplied_entries: u64,
    /// Pages and values that were still in memory and were written anew.
    pub kept_pieces: u64,
    /// Sectors and slots of the superblock that are again what they were, or hold nothing again.
    pub sectors: u64,
    /// Sectors of values that were given up, since the state does without them: an old height that needs what lay there has lost it.
    pub given_up: u64,
    /// What is damaged still.
    pub left: Vec<StoreError>,
}

/// Damaged sectors, by segment.
type Bad = BTreeSet<(SegmentId, u32)>;

/// What is known of the payload of damaged sectors, byte by byte: of values that were had again, where they lay.
type Known = BTreeMap<(SegmentId, u32), [Option<u8>; PAYLOAD_BYTES]>;

/// What the flushed version lacks.
struct Lack {
    version: (Height, Root),
    pages: Vec<(Namespace, Lost)>,
    values: Vec<(Namespace, Key, Entry, StoreError)>,
}

impl Lack {
    fn pieces(&self) -> usize {
        self.pages.len() + self.values.len()
    }
}

/// Something that was had again and is not written yet.
enum Had {
    /// It is in memory still: to be written anew with all above it, by this key below it.
    Kept { namespace: Namespace, key: Key },
    /// All entries below a page.
    Page { namespace: Namespace, at: PageAt, entries: Vec<(Key, Value)> },
    /// A value.
    Value { namespace: Namespace, key: Key, entry: Entry, value: Value },
}

impl<H: Hasher> Shared<H> {
    /// Has again what `problems` name and what is found to be lost with it.
    // spec: STORE-16
    pub(crate) fn mend(&self, problems: &[StoreError], supplier: &mut dyn Supplier) -> Result<Mended, StoreError> {
        self.check_poison()?;
        let mut done = Mended::default();
        {
            let _compacting = self.compacting.lock().unwrap_or_else(PoisonError::into_inner);
            // What is looked at is then what is served, and no opening needs the log up to here.
            self.flush(&mut self.upkeep())?;
            let unreadable = self.unreadable().clone();
            let (mut bad, suspects) = self.places(problems.iter().chain(&unreadable));
            // Without its header nothing in a segment can be looked at.
            done.sectors += self.make_headers_good(&bad)?;
            let mut looked = BTreeSet::new();
            self.look_beside(&mut bad, &mut looked);
            let mut lack = self.lack(&bad, &suspects)?;
            let mut known = Known::new();
            for _ in 0..ROUNDS_MAX {
                if lack.pieces() == 0 {
                    break;
                }
                bad.extend(self.sectors_of(&lack));
                self.look_beside(&mut bad, &mut looked);
                let (had, still) = self.have_again(lack, supplier, &mut done);
                let corrected = self.by_checksum(&still, &bad)?;
                lack = still;
                if had.is_empty() && corrected == 0 {
                    break;
                }
                done.sectors += corrected;
                had.iter().for_each(|had| had.say_where_it_lay(&bad, &mut known));
                self.write_anew(had)?;
                lack = self.lack(&bad, &suspects)?;
            }
            let whole = lack.pieces() == 0;
            for (namespace, lost) in lack.pages {
                let (at, entries, source) = (lost.prefix, lost.totals.count, lost.error);
                done.left.push(StoreError::Unreadable { namespace, at, entries, source });
            }
            done.left.extend(lack.values.into_iter().map(|(.., error)| error));
            self.make_good(&bad, whole.then_some(&known), &mut done)?;
        }
        if done.left.is_empty() {
            self.scrub_anew()?;
            self.compact_again();
        }
        Ok(done)
    }

    /// The sectors that problems name, and the entries.
    fn places<'a>(&self, problems: impl Iterator<Item = &'a StoreError>) -> (Bad, BTreeSet<(Namespace, Vec<u8>)>) {
        let (mut bad, mut suspects) = (Bad::new(), BTreeSet::new());
        for problem in problems {
            match problem {
                StoreError::Damaged { file, offset, .. } => {
                    let id = SegmentId::of_file_name(self.segments.store(), file);
                    let number = u32::try_from(offset / SECTOR_BYTES as u64);
                    bad.extend(id.zip(number.ok()));
                }
                StoreError::Unreadable { namespace, at, .. } => {
                    suspects.insert((namespace.clone(), at.clone()));
                }
                _ => {}
            }
        }
        (bad, suspects)
    }

    /// Whoever named a sector of values did not look at what lies beside it: one stroke mostly hits several. All are known before it
    /// is asked what the state lacks, since none is given up in which something of the state may lie.
    fn look_beside(&self, bad: &mut Bad, looked: &mut BTreeSet<SegmentId>) {
        let mut found = Vec::new();
        for (id, _) in bad.iter().filter(|(id, _)| id.kind == Kind::Values) {
            if looked.insert(*id)
                && let Some(segment) = self.segments.find(*id)
            {
                let end = self.writer().log.end();
                look_again(&self.fresh(), &segment, end, &mut found);
            }
        }
        bad.extend(self.places(found.iter()).0);
    }

    /// Looks for pages of the flushed version that cannot be read, and for values that cannot, among those that are
    /// suspected or lie in bad sectors. Pages are read from the disk, values that nothing is wrong with are not.
    fn lack(&self, bad: &Bad, suspects: &BTreeSet<(Namespace, Vec<u8>)>) -> Result<Lack, StoreError> {
        let mut after: Option<(Namespace, Key)> = None;
        let mut lack = Lack { version: (Height(0), self.current().root), pages: Vec::new(), values: Vec::new() };
        loop {
            // Neither flush nor removal meanwhile: what the superblock names stays. A slice is short.
            let upkeep = self.upkeep();
            let flushed = upkeep.superblock.flushed;
            let tree = open_aside::<H>(&self.fresh(), &flushed)?;
            lack.version = (flushed.height.unwrap_or(Height(0)), flushed.root);
            after = lack_of(&tree, after.as_ref(), bad, suspects, &mut lack);
            if after.is_none() || lack.pieces() >= PIECES_MAX {
                return Ok(lack);
            }
        }
    }

    /// The sectors for which pieces cannot be read. What is had again lies elsewhere then, and these are damage still.
    fn sectors_of(&self, lack: &Lack) -> Bad {
        let lost = lack.pages.iter().flat_map(|(_, lost)| [Some(lost.at()), lost.base()]);
        let pages = lost.flatten().map(|at| (at.place, at.len));
        let values = lack.values.iter().map(|(_, _, entry, _)| (entry.place.0, entry.value_len.saturating_add(4)));
        let mut bad = Bad::new();
        for (place, len) in pages.chain(values) {
            let Ok(spot) = Spot::from_u64(place) else { continue };
            let Some(segment) = self.segments.find(spot.segment) else { continue };
            let last = last_sector(spot, len).min(segment.sectors() - 1);
            let is_bad = |number: &u32| !matches!(segment.sector(*number), Ok((Found::Valid(_), _)));
            bad.extend((spot.sector()..=last).filter(is_bad).map(|number| (spot.segment, number)));
        }
        bad
    }

    /// Writes anew the headers that are damaged: what stands in one is known. Says how many.
    fn make_headers_good(&self, bad: &Bad) -> Result<u64, StoreError> {
        let _upkeep = self.upkeep();
        let generation = self.writer().log.generation();
        let mut good = 0;
        for segment in bad.iter().filter(|(_, number)| *number == 0).filter_map(|(id, _)| self.segments.find(*id)) {
            if segment.sector(0).is_ok_and(|(found, _)| !matches!(found, Found::Valid(_))) {
                let header = segment.header(self.segments.store(), generation);
                self.poisoning(|| segment.put_right(0, &header))?;
                good += 1;
            }
        }
        Ok(good)
    }

    /// The segments as the disk has them: nothing is taken from memory.
    fn fresh(&self) -> Arc<Segments> {
        let files = Arc::clone(self.segments.files_shared());
        Arc::new(Segments::new(files, *self.segments.store(), CACHE_BYTES))
    }

    /// Has again what it can from memory, and then from elsewhere; what it cannot is returned with it. Nothing is written and
    /// nothing is locked: whoever is asked may take long.
    fn have_again(&self, lack: Lack, supplier: &mut dyn Supplier, done: &mut Mended) -> (Vec<Had>, Lack) {
        let tree = &self.current().tree;
        let Lack { version, pages, values } = lack;
        let mut had = Vec::new();
        let mut still = Lack { version, pages: Vec::new(), values: Vec::new() };
        let wanted =
            |namespace: &Namespace, range, totals| Wanted { version, namespace: namespace.clone(), range, totals };
        for (namespace, lost) in pages {
            let mut entries = tree.entries(&namespace, lost.range());
            let first = std::iter::from_fn(|| entries.past_damage()).find_map(Result::ok);
            if let Some((key, _)) = first {
                done.kept_pieces += 1;
                had.push(Had::Kept { namespace, key });
                continue;
            }
            let wanted = wanted(&namespace, lost.range(), lost.totals);
            match ask(supplier, &wanted, |entries| fits::<H>(&namespace, &lost, entries)) {
                Some(entries) => {
                    done.supplied_entries += entries.len() as u64;
                    had.push(Had::Page { namespace, at: lost.at(), entries });
                }
                None => still.pages.push((namespace, lost)),
            }
        }
        for (namespace, key, entry, error) in values {
            if let Ok(value) = tree.value(&entry) {
                done.kept_pieces += 1;
                had.push(Had::Value { namespace, key, entry, value });
                continue;
            }
            let end = [key.as_slice(), &[0]].concat();
            let totals = Totals::entry(key.len(), entry.value_len);
            let wanted = wanted(&namespace, KeyRange::between(&key, &end), totals);
            let fits = |offered: &[(Key, Value)]| match offered {
                [(found, value)] => *found == key && H::hash(value) == entry.value_hash,
                _ => false,
            };
            match ask(supplier, &wanted, fits).and_then(|mut offered| offered.pop()) {
                Some((_, value)) => {
                    done.supplied_entries += 1;
                    had.push(Had::Value { namespace, key, entry, value });
                }
                None => still.values.push((namespace, key, entry, error)),
            }
        }
        (had, still)
    }

    /// Writes what was had again: values and pages behind what is there, then two superblocks that name them.
    fn write_anew(&self, had: Vec<Had>) -> Result<(), StoreError> {
        let mut upkeep = self.upkeep();
        let _poisoned = self.poisoned_by_panic();
        let Laid { pages, rewrites, olds } = self.poisoning(|| self.lay(had, &mut upkeep))?;
        self.segments.patch(pages);
        // Nothing is written beside what may be damaged.
        if self.point_at(&rewrites, |_| false, |_| {}).is_err() {
            // One that cannot be reached, since something else on its way is damaged too, keeps none of the others back.
            rewrites.iter().for_each(|one| drop(self.point_at(std::slice::from_ref(one), |_| false, |_| {})));
        }
        self.segments.patch(BTreeMap::new());
        self.segments.count_commit(std::iter::empty(), &olds, self.current().height.unwrap_or_default());
        // The one slot and the other.
        self.flush(&mut upkeep)?;
        self.flush(&mut upkeep)
    }

    /// Lays down values and pages, durably. Nothing refers to them yet.
    fn lay(&self, had: Vec<Had>, upkeep: &mut Upkeep) -> Result<Laid, StoreError> {
        let generation = self.writer().log.generation();
        let bytes: u64 = had.iter().map(Had::bytes).sum();
        // Checksums of the sectors; too little only means another segment.
        let size = self.options.segment_bytes.min((bytes + bytes / 8).max(1 << 16));
        let mut values = Appender::new(Arc::clone(&self.segments), Kind::Values, None, generation, size)?;
        let mut laid = Laid::default();
        for had in had {
            match had {
                Had::Kept { namespace, key } => laid.rewrites.push(Rewrite { namespace, key, moved: None }),
                Had::Value { namespace, key, entry, value } => {
                    let to = put(&mut values, &value)?;
                    laid.rewrites.push(Rewrite { namespace, key, moved: Some((entry.place, to)) });
                    laid.olds.push(Some(entry));
                }
                Had::Page { namespace, at, entries } => {
                    let places = entries.iter().map(|(_, value)| put(&mut values, value));
                    let places = places.collect::<Result<Vec<Place>, StoreError>>()?;
                    let page = grow::<H, _>(&namespace, &entries, &places, &mut |page| {
                        let spot = upkeep.pages.append(&[page])?;
                        let len = u32::try_from(page.len()).expect("pages are small");
                        Ok::<_, StoreError>(PageAt { place: spot.to_u64(), len })
                    })?;
                    laid.pages.insert(at, page);
                    let key = entries.into_iter().next().expect("no page is empty").0;
                    laid.rewrites.push(Rewrite { namespace, key, moved: None });
                }
            }
        }
        values.sync()?;
        upkeep.pages.sync()?;
        Ok(laid)
    }

    /// What nobody has may still be told by its checksum: of each piece, the one sector that is bad is taken for one byte
    /// off, and what the piece then is, is proven by its hash as ever. Says how many sectors are good again.
    fn by_checksum(&self, lack: &Lack, bad: &Bad) -> Result<u64, StoreError> {
        let upkeep = self.upkeep();
        let mut good = 0;
        for (_, lost) in &lack.pages {
            let read = |at: PageAt| self.segments.read(at.place, at.len as usize).ok();
            let (at, base) = (lost.at(), lost.base());
            let corrected = match base.zip(base.and_then(|_| read(at))) {
                // The page says what it is written beside, so that is what cannot be read.
                Some((base, page)) => {
                    let fits = |bytes: &[u8]| lost.is_filled_by::<H>(&page, |_| Some(Bytes::copy_from_slice(bytes)));
                    self.correct(bad, base.place, base.len, &fits)?
                }
                None => self.correct(bad, at.place, at.len, &|bytes| lost.is_filled_by::<H>(bytes, read))?,
            };
            good += u64::from(corrected);
        }
        for (_, _, entry, _) in &lack.values {
            let fits = |bytes: &[u8]| {
                let (len, value) = bytes.split_at(4);
                len == entry.value_len.to_le_bytes() && H::hash(value) == entry.value_hash
            };
            good += u64::from(self.correct(bad, entry.place.0, 4 + entry.value_len, &fits)?);
        }
        drop(upkeep);
        Ok(good)
    }

    /// Corrects the one bad sector of some bytes, if `fits` says what they must be.
    fn correct(&self, bad: &Bad, place: u64, len: u32, fits: &dyn Fn(&[u8]) -> bool) -> Result<bool, StoreError> {
        let Ok(spot) = Spot::from_u64(place) else { return Ok(false) };
        let Some(segment) = self.segments.find(spot.segment) else { return Ok(false) };
        let sectors: Vec<u32> = overlapped(bad, spot, len).collect();
        let [number] = sectors[..] else { return Ok(false) };
        for candidate in segment.one_byte_off(number)? {
            let bytes = segment.read_with(spot.offset, len as usize, (number, &candidate));
            if bytes.is_ok_and(|bytes| fits(&bytes)) {
                self.poisoning(|| segment.put_right(number, &candidate))?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    // ---- what the state does without

    /// Makes sectors good that the state does without, and looks at all of it again. `known`: what is known of values that were had
    /// again, if the state lacks nothing.
    fn make_good(&self, bad: &Bad, known: Option<&Known>, done: &mut Mended) -> Result<(), StoreError> {
        let mut upkeep = self.upkeep();
        if !upkeep.file.check().is_empty() {
            // Both slots, and what lies between them.
            self.poisoning(|| {
                for _ in 0..2 {
                    let (flushed, epoch) = (upkeep.superblock.flushed, upkeep.superblock.epoch);
                    self.write_superblock(&mut upkeep, flushed, epoch)?;
                }
                upkeep.file.clear_between()
            })?;
            done.sectors += 1;
        }
        let ids: BTreeSet<SegmentId> = bad.iter().map(|(id, _)| *id).collect();
        for segment in ids.into_iter().filter_map(|id| self.segments.find(id)) {
            // Whoever named a piece did not look at what lies beside it.
            let mut beside = Vec::new();
            // Asked first, or commits would wait for all of it.
            let end = self.writer().log.end();
            look_again(&self.fresh(), &segment, end, &mut beside);
            let mut all = bad.clone();
            all.extend(self.places(beside.iter()).0);
            let sectors = all.range((segment.id(), 0)..(segment.id(), segment.sectors())).map(|(_, number)| *number);
            let is_damaged = |number: &u32| matches!(segment.sector(*number), Ok((Found::Damaged, _)));
            // A record may have several that are damaged, and its hash needs all of them.
            let mut told = BTreeMap::new();
            let damaged: Vec<u32> = sectors.filter(is_damaged).collect();
            for number in damaged.iter().take(CORRECTED_MAX) {
                told.extend(only(segment.one_byte_off(*number)?).map(|sector| (*number, sector)));
            }
            for (count, number) in damaged.into_iter().enumerate() {
                let writer = self.writer();
                let told = (count < CORRECTED_MAX).then_some(&told);
                // It may have been one that was being written.
                if is_damaged(&number) {
                    // Of what was damaged only since, nobody knows whether the state does without it.
                    let known =
                        known.filter(|_| segment.id().kind != Kind::Values || bad.contains(&(segment.id(), number)));
                    match self.make_sector_good(&segment, number, told, &writer, known)? {
                        Some(Made::Good) => done.sectors += 1,
                        Some(Made::GivenUp) => done.given_up += 1,
                        None => {}
                    }
                }
            }
            let end = self.writer().log.end();
            look_again(&self.fresh(), &segment, end, &mut done.left);
        }
        done.left.extend(upkeep.file.check());
        Ok(())
    }

    /// Makes one damaged sector what it was, or nothing, where it is known that it is nothing, or gives it up. Says what it did.
    /// `told`: what the damaged sectors of the segment are, as far as their checksums tell; none if there are too many to ask.
    /// `known`: as for [`Self::make_good`].
    fn make_sector_good(
        &self,
        segment: &Segment,
        number: u32,
        told: Option<&BTreeMap<u32, Sector>>,
        writer: &Writer,
        known: Option<&Known>,
    ) -> Result<Option<Made>, StoreError> {
        let (id, end) = (segment.id(), writer.log.end());
        let nothing = [0; SECTOR_BYTES];
        let is_told = || told.and_then(|told| told.get(&number)).copied();
        let right = match id.kind {
            // Behind the end of the log nothing counts.
            Kind::Log if id > end.segment || (id == end.segment && number > end.sector()) => Some(nothing),
            Kind::Log if id == end.segment && number == end.sector() => {
                // The mark of the last record stands there, or did.
                self.poisoning(|| {
                    segment.put_right(number, &nothing)?;
                    let version = self.current();
                    version.height.map_or(Ok(()), |height| writer.log.mark(version.epoch, height, version.root))
                })?;
                return Ok(Some(Made::Good));
            }
            Kind::Log if log::is_left_over(&self.segments, segment, number) => Some(nothing),
            Kind::Log => {
                let Some(told) = told else { return Ok(None) };
                let candidates = segment.one_byte_off(number)?;
                candidates.into_iter().find(|candidate| log::proves(&self.segments, segment, (number, candidate), told))
            }
            // A value is proven when it is read as one of the state. No more is known of one that only history refers to than
            // its checksum, as ever.
            Kind::Values => is_told(),
            // No page of the state lies there, and whatever else is read as a page is proven.
            Kind::Pages => is_told().or(known.map(|_| nothing)),
        };
        let (right, made) = match (right, known) {
            (Some(right), _) => (right, Made::Good),
            (None, Some(known)) if id.kind == Kind::Values => {
                give_up(segment, number, known.get(&(id, number)), writer.log.generation())?
            }
            (None, _) => return Ok(None),
        };
        self.poisoning(|| segment.put_right(number, &right)).map(|()| Some(made))
    }
}

/// What became of a damaged sector.
enum Made {
    /// It is what it was, or nothing again.
    Good,
    /// It is whole, and what is not known of it may be anything: nothing of the state lies there.
    GivenUp,
}

/// A damaged sector of values that the state does without, with what is known of it in its place. The rest stays as it is read:
/// some of it may be right, and an old height that needs any proves it by its hash.
fn give_up(
    segment: &Segment,
    number: u32,
    known: Option<&[Option<u8>; PAYLOAD_BYTES]>,
    generation: u32,
) -> Result<(Sector, Made), StoreError> {
    let (_, mut payload) = segment.sector(number)?;
    for (byte, known) in payload.iter_mut().zip(known.into_iter().flatten()) {
        *byte = known.unwrap_or(*byte);
    }
    let is_all_known = known.is_some_and(|known| known.iter().all(Option::is_some));
    let sealed = segment.seal(number, generation, false, &payload);
    let sector = sealed.try_into().expect("the payload of one sector makes one");
    Ok((sector, if is_all_known { Made::Good } else { Made::GivenUp }))
}

/// What was laid down, and how the tree comes to point at it.
#[derive(Default)]
struct Laid {
    /// The pages that stand in the place of damaged ones.
    pages: BTreeMap<PageAt, Bytes>,
    rewrites: Vec<Rewrite>,
    /// Entries whose values lie elsewhere now.
    olds: Vec<Option<Entry>>,
}

impl Had {
    /// Bytes of the values that are to be written.
    fn bytes(&self) -> u64 {
        let value = |value: &Value| 4 + value.len() as u64;
        match self {
            Self::Kept { .. } => 0,
            Self::Page { entries, .. } => entries.iter().map(|(_, found)| value(found)).sum(),
            Self::Value { value: found, .. } => value(found),
        }
    }

    /// Says what is known of the bad sectors in which a value lay.
    fn say_where_it_lay(&self, bad: &Bad, known: &mut Known) {
        let Self::Value { entry, value, .. } = self else { return };
        let Ok(spot) = Spot::from_u64(entry.place.0) else { return };
        let field = [&entry.value_len.to_le_bytes()[..], value].concat();
        let end = spot.offset.saturating_add(u32::try_from(field.len()).unwrap_or(u32::MAX));
        for number in overlapped(bad, spot, entry.value_len.saturating_add(4)) {
            let sector = known.entry((spot.segment, number)).or_insert([None; PAYLOAD_BYTES]);
            let first = number * PAYLOAD;
            for at in first.max(spot.offset)..end.min(first.saturating_add(PAYLOAD)) {
                sector[(at - first) as usize] = Some(field[(at - spot.offset) as usize]);
            }
        }
    }
}

fn put(values: &mut Appender, value: &Value) -> Result<Place, StoreError> {
    let len = u32::try_from(value.len()).expect("a value has at most 8 MiB");
    Ok(Place(values.append(&[&len.to_bytes(), value])?.to_u64()))
}

/// Asks for a piece until something is offered that fits.
fn ask(
    supplier: &mut dyn Supplier,
    wanted: &Wanted,
    fits: impl Fn(&[(Key, Value)]) -> bool,
) -> Option<Vec<(Key, Value)>> {
    if wanted.totals.bytes > PIECE_BYTES_MAX {
        return None;
    }
    let mut found = None;
    supplier.offer(wanted, &mut |offered| {
        if found.is_none() && offered.len() as u64 == wanted.totals.count && fits(offered) {
            found = Some(offered.to_vec());
        }
        found.is_some()
    });
    found
}

/// Whether entries are those below a lost page: what is grown of them has its hash. Nothing is written.
// spec: STORE-16
fn fits<H: Hasher>(namespace: &Namespace, lost: &Lost, entries: &[(Key, Value)]) -> bool {
    if entries.is_empty() || !entries.is_sorted_by(|(a, _), (b, _)| a < b) {
        return false;
    }
    let places = vec![Place::default(); entries.len()];
    let nowhere = |page: &[u8]| Ok(PageAt { place: 0, len: u32::try_from(page.len()).expect("pages are small") });
    let grown = grow::<H, std::convert::Infallible>(namespace, entries, &places, &mut { nowhere });
    grown.is_ok_and(|page| lost.is_filled_by::<H>(&page, |_| None))
}

/// Grows pages of entries in order, hands them to `write`, and returns the one above all of them.
fn grow<H: Hasher, E>(
    namespace: &Namespace,
    entries: &[(Key, Value)],
    places: &[Place],
    write: &mut impl FnMut(&[u8]) -> Result<PageAt, E>,
) -> Result<Bytes, E> {
    let mut leaves = Vec::with_capacity(entries.len());
    Leaf::of::<H>(entries.iter().map(|(key, value)| (key.as_slice(), &value[..])), &mut leaves);
    // Pages below come before those above, so the last one is the top.
    let mut top = Vec::new();
    let mut write = |page: &[u8]| {
        top = page.to_vec();
        write(page)
    };
    let mut build = Build::<H>::new();
    for (((key, _), leaf), place) in entries.iter().zip(&leaves).zip(places) {
        build.push(namespace, key, leaf, *place, &mut write)?;
    }
    build.finish(&mut write)?;
    Ok(top.into())
}

/// The sector in which some bytes end.
fn last_sector(spot: Spot, len: u32) -> u32 {
    spot.offset.saturating_add(len.saturating_sub(1)) / PAYLOAD
}

/// The bad sectors in which some bytes lie.
fn overlapped(bad: &Bad, spot: Spot, len: u32) -> impl Iterator<Item = u32> {
    bad.range((spot.segment, spot.sector())..=(spot.segment, last_sector(spot, len))).map(|(_, number)| *number)
}

fn only<T>(candidates: Vec<T>) -> Option<T> {
    let mut candidates = candidates.into_iter();
    candidates.next().filter(|_| candidates.next().is_none())
}

/// Looks through a slice of a version behind an entry; says where the next one begins.
fn lack_of<H: Hasher>(
    tree: &Tree<H>,
    after: Option<&(Namespace, Key)>,
    bad: &Bad,
    suspects: &BTreeSet<(Namespace, Vec<u8>)>,
    lack: &mut Lack,
) -> Option<(Namespace, Key)> {
    let mut seen = 0;
    let names = tree.namespaces().map(|(name, ..)| name).filter(|name| after.is_none_or(|(from, _)| from <= *name));
    for name in names {
        let start = after.filter(|(from, _)| from == name).map(|(_, key)| [key.as_slice(), &[0]].concat());
        let mut entries = tree.entries(name, KeyRange::from(&start.unwrap_or_default())).in_passing();
        while let Some(next) = entries.past_damage() {
            let (key, entry) = match next {
                Ok(found) => found,
                Err(lost) => {
                    lack.pages.push((name.clone(), lost));
                    continue;
                }
            };
            let hit = Spot::from_u64(entry.place.0)
                .map_or(true, |spot| overlapped(bad, spot, entry.value_len.saturating_add(4)).next().is_some());
            if (hit || (!suspects.is_empty() && suspects.contains(&(name.clone(), key.to_vec()))))
                && let Err(source) = tree.value(&entry)
            {
                let error = StoreError::Unreadable { namespace: name.clone(), at: key.to_vec(), entries: 1, source };
                lack.values.push((name.clone(), key.clone(), entry, error));
            }
            seen += 1;
            if seen >= SLICE_ENTRIES || lack.pieces() >= PIECES_MAX {
                return Some((name.clone(), key));
            }
        }
    }
    None
}

/// Looks at a whole segment again, from the disk.
fn look_again(fresh: &Segments, open: &Segment, end: Spot, left: &mut Vec<StoreError>) {
    let id = open.id();
    let segment = match fresh.open(id) {
        Ok(segment) => segment,
        Err(error) => return left.push(error),
    };
    let written = match id {
        id if id.kind != Kind::Log || id < end.segment => segment.sectors(),
        id if id == end.segment => end.sector(),
        _ => 0,
    };
    let parts = [(0, written, Before::default()), (written, segment.sectors(), Before::behind_the_end())];
    for (from, to, mut before) in parts {
        let mut found = Vec::new();
        if let Err(error) = look::sectors(&segment, open, (from, to), &mut before, &mut |problem| found.push(problem)) {
            found.push(error);
        }
        left.extend(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use keelstone_codec::Hash;

    struct Counts(u32);

    impl Supplier for Counts {
        fn offer(&mut self, _: &Wanted, take: Accept<'_>) {
            self.0 += 1;
            take(&[]);
        }
    }

    /// A piece that is larger than what is had again at once is asked of nobody; and what is not as many entries as were lost
    /// is not looked at.
    #[test]
    fn a_piece_beyond_the_limit_is_asked_of_nobody() {
        let asks = |bytes| {
            let wanted = Wanted {
                version: (Height(1), Root(Hash::ZERO)),
                namespace: Namespace::new("agents").unwrap(),
                range: KeyRange::from(b""),
                totals: Totals { count: 1, bytes },
            };
            let mut counts = Counts(0);
            assert_eq!(ask(&mut counts, &wanted, |_| panic!("nothing was offered")), None);
            counts.0
        };
        assert_eq!((asks(PIECE_BYTES_MAX), asks(PIECE_BYTES_MAX + 1)), (1, 0));
    }
}
