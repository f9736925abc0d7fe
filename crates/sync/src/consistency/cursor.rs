//! How far the reading of the whole state has come, kept so that a restart does not begin it anew.
//!
//! Layout and rules: `spec/consistency.md`, CHECK-7. Vectors: `spec/vectors/consistency.json`.

use keelstone_codec::{Decode, DecodeError, Encode, Hash, Key, Namespace, Reader, Tag, TaggedHasher};

/// Most bytes of a cursor.
pub const CURSOR_BYTES_MAX: usize = 512;

const TAG: Tag = Tag::new("check-cursor");
const VERSION: u8 = 1;

/// How far the checker has read the state.
// spec: CHECK-7
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// How often it came to the end of the state.
    pub passes: u64,
    /// Entries it has read since it began anew last.
    pub entries: u64,
    /// Where it goes on; none at the beginning of the state.
    pub next: Option<(Namespace, Key)>,
}

impl Cursor {
    /// Takes in what was read.
    pub(super) fn advance(&mut self, entries: u32, next: Option<(Namespace, Key)>) {
        self.entries = self.entries.saturating_add(u64::from(entries));
        if next.is_none() {
            self.passes = self.passes.saturating_add(1);
            self.entries = 0;
        }
        self.next = next;
    }

    fn digest(&self) -> Hash {
        let mut hasher = TaggedHasher::new(TAG);
        let mut bytes = Vec::new();
        self.body(&mut bytes);
        hasher.update(&bytes).finish()
    }

    fn body(&self, out: &mut Vec<u8>) {
        VERSION.encode(out);
        self.passes.encode(out);
        self.entries.encode(out);
        self.next.encode(out);
    }
}

impl Encode for Cursor {
    fn encode(&self, out: &mut Vec<u8>) {
        self.body(out);
        self.digest().encode(out);
    }
}

impl Decode for Cursor {
    fn decode(input: &mut Reader<'_>) -> Result<Self, DecodeError> {
        if input.left() > CURSOR_BYTES_MAX {
            let (found, limit) = (input.left() as u64, CURSOR_BYTES_MAX as u64);
            return Err(DecodeError::TooLarge { what: "cursor of the checker", found, limit });
        }
        if u8::decode(input)? != VERSION {
            return Err(DecodeError::Invalid { what: "cursor of the checker: its version is not 1" });
        }
        let cursor = Self { passes: u64::decode(input)?, entries: u64::decode(input)?, next: Option::decode(input)? };
        if Hash::decode(input)? != cursor.digest() {
            return Err(DecodeError::Invalid { what: "cursor of the checker: its digest is another" });
        }
        Ok(cursor)
    }
}
