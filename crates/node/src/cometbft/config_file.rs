//! Edits of CometBFT's `config.toml` that leave every other byte as it was.
//!
//! The file belongs to whoever runs the engine: comments, order and spaces are theirs. So an edit replaces the value on
//! the line of its key, or adds a line at the end of its section, and nothing else. Line by line is not how TOML is
//! defined (a value may span lines), so the result is parsed and compared with the original: every other value must be
//! what it was and the edited ones what was asked for, or nothing is written.

use std::fmt;
use toml::{Table, Value};

/// One setting to be written: the section's name, empty for the top of the file, the key and the value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Edit {
    section: String,
    key: String,
    value: Value,
}

/// Why a file was not edited. Whoever wrote it has to act; it was left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EditError {
    /// It is not TOML.
    #[error("not TOML: {0}")]
    Toml(String),
    /// It is written in a way in which one line cannot be changed alone.
    #[error("{section}.{key} is written in a way that cannot be changed line by line: set it by hand to {value}")]
    Shape {
        /// The section.
        section: String,
        /// The key.
        key: String,
        /// What it was to become.
        value: String,
    },
}

impl Edit {
    pub(crate) fn new(section: &str, key: &str, value: impl Into<Value>) -> Self {
        Self { section: section.to_owned(), key: key.to_owned(), value: value.into() }
    }

    /// An edit as people write it: `consensus.timeout_commit=200ms`. A value that is no TOML is a text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (name, value) = text.split_once('=')?;
        let (section, key) = name.trim().rsplit_once('.').unwrap_or(("", name.trim()));
        let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
        if key.is_empty() || !plain(section) || !plain(key) {
            return None;
        }
        let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
        Some(Self::new(section, key, parsed.unwrap_or_else(|| Value::String(value.to_owned()))))
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.section.is_empty() { "" } else { "." };
        write!(f, "{}{dot}{} = {}", self.section, self.key, self.value)
    }
}

/// The text with the edits made. Made again, they change nothing.
///
/// # Errors
/// [`EditError`] if the text is no TOML, or not of a form in which lines can be changed alone.
pub(crate) fn edited(text: &str, edits: &[Edit]) -> Result<String, EditError> {
    let parse =
        |text: &str| text.parse::<Table>().map_err(|error| EditError::Toml(error.message().replace('\n', ", ")));
    let mut expected = parse(text)?;
    let mut out = text.to_owned();
    for edit in edits {
        let shape =
            || EditError::Shape { section: edit.section.clone(), key: edit.key.clone(), value: edit.value.to_string() };
        out = edited_once(&out, edit);
        put(&mut expected, edit).ok_or_else(shape)?;
        // Not TOML any more, or another value changed with it: a line was not what it looked like.
        if out.parse::<Table>().ok().as_ref() != Some(&expected) {
            return Err(shape());
        }
    }
    Ok(out)
}

/// Makes the edit in the parsed file. `None` if its section is no table.
fn put(table: &mut Table, edit: &Edit) -> Option<()> {
    let section = match edit.section.as_str() {
        "" => table,
        name => table.entry(name).or_insert_with(|| Value::Table(Table::new())).as_table_mut()?,
    };
    section.insert(edit.key.clone(), edit.value.clone());
    Some(())
}

fn edited_once(text: &str, edit: &Edit) -> String {
    let mut lines: Vec<String> = text.split_inclusive('\n').map(str::to_owned).collect();
    let mut section = Some("".to_owned());
    // Where a line of this section could be added: behind the last line of it that is not empty.
    let mut end = edit.section.is_empty().then_some(0);
    for (index, line) in lines.iter_mut().enumerate() {
        if let Some(name) = header(line) {
            section = Some(name);
        } else if let Some(rest) = value_at(line, &edit.key)
            && section.as_deref() == Some(edit.section.as_str())
        {
            let tail = line[rest..].trim_start();
            let old = value_end(tail);
            let comment = tail[old..].to_owned();
            *line = format!("{} = {}{comment}", &line[..key_end(line, &edit.key)], edit.value);
            return lines.concat();
        }
        if section.as_deref() == Some(edit.section.as_str()) && !line.trim().is_empty() && !line.starts_with('#') {
            end = Some(index + 1);
        }
    }
    let added = format!("{} = {}\n", edit.key, edit.value);
    match end {
        Some(at) => {
            if let Some(before) = at.checked_sub(1).and_then(|before| lines.get_mut(before))
                && !before.ends_with('\n')
            {
                before.push('\n');
            }
            lines.insert(at, added);
        }
        None => {
            let gap = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            lines.push(format!("{gap}\n[{}]\n{added}", edit.section));
        }
    }
    lines.concat()
}

/// The name in a line such as `[p2p]`. A list of tables has a name that no edit has.
fn header(line: &str) -> Option<String> {
    let inside = line.trim_start().strip_prefix('[')?;
    let (name, _) = inside.rsplit_once(']')?;
    Some(name.trim().to_owned())
}

/// Where the key on this line ends, if it is this key.
fn key_end(line: &str, key: &str) -> usize {
    line.len() - line.trim_start().len() + key.len()
}

/// Where the value begins on a line of this key.
fn value_at(line: &str, key: &str) -> Option<usize> {
    let rest = line.trim_start().strip_prefix(key)?.trim_start().strip_prefix('=')?;
    Some(line.len() - rest.len())
}

/// Where a value on one line ends: before the spaces that come before a comment, or before the line's end.
fn value_end(tail: &str) -> usize {
    let mut quote = None;
    let mut escaped = false;
    let mut end = tail.len();
    for (at, byte) in tail.bytes().enumerate() {
        match (quote, byte) {
            (Some(b'"'), b'\\') if !escaped => {
                escaped = true;
                continue;
            }
            (Some(open), byte) if open == byte && !escaped => quote = None,
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'#') => {
                end = at;
                break;
            }
            _ => {}
        }
        escaped = false;
    }
    tail[..end].trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# A comment\nproxy_app = \"tcp://127.0.0.1:26658\"\n\n[p2p]\n# Rate\nsend_rate = 5120000 # bytes\nseeds = \"a#b\"\n\n[statesync]\nenable = false\n\nrpc_servers = \"\"";

    #[test]
    fn an_edit_changes_its_value_and_no_other_byte() {
        let edits = [
            Edit::new("p2p", "send_rate", 20_480_000),
            Edit::new("statesync", "rpc_servers", "http://a:1,http://b:2"),
            Edit::new("", "proxy_app", "unix:///x"),
        ];
        let expected = FILE
            .replace("5120000", "20480000")
            .replace("rpc_servers = \"\"", "rpc_servers = \"http://a:1,http://b:2\"")
            .replace("tcp://127.0.0.1:26658", "unix:///x");
        let once = edited(FILE, &edits).expect("edited");
        assert_eq!(once, expected);
        assert_eq!(edited(&once, &edits).expect("edited again"), once, "made again, an edit changes nothing");
    }

    #[test]
    fn a_missing_key_and_a_missing_section_are_added() {
        let text = edited(FILE, &[Edit::new("p2p", "recv_rate", 7), Edit::new("statesync", "trust_height", 9)]);
        let text = text.expect("edited");
        assert!(text.contains("seeds = \"a#b\"\nrecv_rate = 7\n\n[statesync]"), "{text}");
        assert!(text.ends_with("rpc_servers = \"\"\ntrust_height = 9\n"), "{text}");
        let text = edited("a = 1", &[Edit::new("consensus", "timeout_commit", "1s")]).expect("edited");
        assert_eq!(text, "a = 1\n\n[consensus]\ntimeout_commit = \"1s\"\n");
        assert_eq!(edited("", &[Edit::new("", "a", 1)]).expect("edited"), "a = 1\n");
        assert_eq!(edited("[x]\n", &[Edit::new("", "a", 1)]).expect("edited"), "a = 1\n[x]\n");
    }

    #[test]
    fn edits_are_read_as_people_write_them() {
        let shown = |text| Edit::parse(text).map(|edit| edit.to_string());
        assert_eq!(shown("consensus.timeout_commit=200ms").as_deref(), Some("consensus.timeout_commit = \"200ms\""));
        assert_eq!(shown("p2p.send_rate=7").as_deref(), Some("p2p.send_rate = 7"));
        assert_eq!(shown("moniker=\"x\"").as_deref(), Some("moniker = \"x\""));
        for bad in ["", "a.b", "=1", "a b.c=1", "[x].y=1"] {
            assert_eq!(shown(bad), None, "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_changed_line_by_line_is_refused() {
        let edit = [Edit::new("p2p", "send_rate", 1)];
        for text in [
            "p2p = { send_rate = 2 }\n",
            "p2p = 5\n",
            "[p2p]\nsend_rate = [\n1,\n2 ]\n",
            "[p2p]\nnote = \"\"\"\nsend_rate = 3\n\"\"\"\nsend_rate = 2\n",
            "[p2p]\n\"send_rate\" = 2\n",
        ] {
            assert!(matches!(edited(text, &edit), Err(EditError::Shape { .. })), "{text}");
        }
        assert!(matches!(edited("[p2p\n", &edit), Err(EditError::Toml(_))));
    }
}
