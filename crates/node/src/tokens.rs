//! Tokens for the HTTP API: who may ask, who may send, and who may administer, beside what a transaction's signature says.
//!
//! A token is shown once, when it is made; what is kept is its hash, in `tokens.json`, readable by the owner only. A node
//! also makes one for the commands of its own home, in `api.token`, for as long as it runs: whoever can read that can
//! read the keys.
//!
//! Format: `docs/http.md`, "Tokens".

use crate::exit::{Exit, Failure};
use crate::home::Home;
use crate::input;
use crate::keyfile;
use crate::newfile;
use crate::strict_json;
use keelstone_codec::{Hash, Tag, TaggedHasher};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use zeroize::Zeroizing;

/// Most tokens of a node.
const TOKENS_MAX: usize = 64;
/// Bytes of the file of tokens: so many with the longest names, and twice over.
const FILE_BYTES_MAX: u64 = 32 * 1024;
/// What every token begins with, so that one is known where it does not belong.
const PREFIX: &str = "ks_";
/// Hexadecimal digits of a token.
const DIGITS: usize = 64;
/// The version of the file format this program writes and reads.
const VERSION: u32 = 1;

/// What the holder of a token may do. A later one may do what an earlier one may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    /// Ask.
    Read,
    /// Ask, and send transactions.
    Write,
    /// All that, and what changes the node itself.
    Admin,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Admin => "admin",
        })
    }
}

/// A token as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Of the token's text.
    hash: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    tokens: Vec<Kept>,
}

/// The hash under which a token is kept and compared.
pub(crate) fn hash(token: &str) -> Hash {
    const TOKEN: Tag = Tag::new("api-token");
    TaggedHasher::new(TOKEN).update(token.as_bytes()).finish()
}

/// Whether a token, or a parameter that is called so, stands in text where none belongs.
pub(crate) fn stands_in(text: &str) -> bool {
    let whole = |part: &str| part.bytes().take_while(u8::is_ascii_hexdigit).count() >= DIGITS;
    let named = text.split(['?', '&']).skip(1).filter_map(|parameter| parameter.split('=').next());
    let mut named = named.map(str::to_ascii_lowercase);
    text.split(PREFIX).skip(1).any(whole) || named.any(|name| matches!(&*name, "token" | "access_token"))
}

/// A fresh token: 32 bytes of the system's randomness.
fn fresh() -> Result<Zeroizing<String>, Failure> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut()).map_err(|error| Failure::io("no randomness for a token", &error))?;
    Ok(Zeroizing::new(format!("{PREFIX}{}", hex::encode(bytes.as_ref()))))
}

/// The tokens of a home directory; none if it has no file of them.
///
/// # Errors
/// A usage failure if others can read the file or it is not one.
pub(crate) fn load(home: &Home) -> Result<Vec<Kept>, Failure> {
    let path = home.tokens();
    let text = match input::read_private(&path, "file of tokens", FILE_BYTES_MAX) {
        Err(failure) if failure.exit == Exit::NotFound => return Ok(Vec::new()),
        read => read?,
    };
    parse(&text).map_err(|problem| Failure::usage(format!("{} is no file of tokens: {problem}", path.display())))
}

/// The tokens in a file's text.
fn parse(text: &[u8]) -> Result<Vec<Kept>, String> {
    let File { version, tokens } = strict_json::parse(text).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("version {version}, this program knows {VERSION}"));
    }
    if tokens.len() > TOKENS_MAX {
        return Err(format!("{} tokens, at most {TOKENS_MAX}", tokens.len()));
    }
    for (index, Kept { name, hash, .. }) in tokens.iter().enumerate() {
        if !keyfile::is_plain(name) || tokens[..index].iter().any(|other| other.name == *name) {
            return Err(format!("{name:?} is no name, or stands there twice"));
        }
        Hash::from_hex(hash).map_err(|error| format!("the hash of {name:?}: {error}"))?;
    }
    Ok(tokens)
}

/// Hashes and roles, for comparing.
pub(crate) fn roles(tokens: &[Kept]) -> Vec<(Hash, Role)> {
    tokens.iter().filter_map(|token| Some((Hash::from_hex(&token.hash).ok()?, token.role))).collect()
}

/// Waits until no other process changes the tokens of a home, and keeps others from it for as long as what it gives lives:
/// of two that read the file and then write it, the later would forget what the earlier wrote.
fn locked(home: &Home) -> Result<fs::File, Failure> {
    let path = home.tokens_lock();
    let file = fs::File::options().write(true).create(true).truncate(false).open(&path);
    let locked = file.and_then(|file| file.lock().map(|()| file));
    locked.map_err(|error| Failure::io(format_args!("could not lock {}", path.display()), &error))
}

/// Makes a token and keeps its hash. The text is not kept anywhere.
pub(crate) fn create(home: &Home, name: &str, role: Role) -> Result<Zeroizing<String>, Failure> {
    let _lock = locked(home)?;
    let mut tokens = load(home)?;
    keyfile::check_plain(name, "name")?;
    if tokens.iter().any(|token| token.name == name) {
        return Err(Failure::usage(format!("there is a token {name:?} already")));
    }
    if tokens.len() >= TOKENS_MAX {
        return Err(Failure::usage(format!("there are {TOKENS_MAX} tokens, which is the limit")));
    }
    let token = fresh()?;
    tokens.push(Kept { name: name.to_owned(), role, hash: hash(&token).to_string() });
    store(home, tokens)?;
    Ok(token)
}

/// Forgets a token. A node that runs goes on taking it until it is told or started again.
pub(crate) fn remove(home: &Home, name: &str) -> Result<(), Failure> {
    let _lock = locked(home)?;
    let mut tokens = load(home)?;
    let before = tokens.len();
    tokens.retain(|token| token.name != name);
    if tokens.len() == before {
        return Err(Failure::not_found(format!("there is no token {name:?}")));
    }
    store(home, tokens)
}

fn store(home: &Home, tokens: Vec<Kept>) -> Result<(), Failure> {
    let text = serde_json::to_vec_pretty(&File { version: VERSION, tokens });
    let text = text.map_err(|error| Failure::error(error.to_string()))?;
    write(&home.tokens(), &text)
}

/// Makes the token of the node that runs here, for commands of this home.
pub(crate) fn make_own(home: &Home) -> Result<(Hash, Role), Failure> {
    let token = fresh()?;
    write(&home.own_token(), token.as_bytes())?;
    Ok((hash(&token), Role::Admin))
}

/// What [`make_own`] left, if a node runs.
pub(crate) fn own(home: &Home) -> Option<Zeroizing<String>> {
    read(&home.own_token()).ok()
}

/// The token in a file, with or without a line's end behind it.
///
/// # Errors
/// As [`load`], and a usage failure for what is no token.
pub(crate) fn read(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = input::read_private(path, "token", FILE_BYTES_MAX)?;
    let text = Zeroizing::new(String::from_utf8_lossy(&text).into_owned());
    given(text.trim_end_matches('\n').to_owned(), &path.display().to_string())
}

/// A token that `source` gives.
///
/// # Errors
/// A usage failure for what is no token. It does not show what was given.
pub(crate) fn given(text: String, source: &str) -> Result<Zeroizing<String>, Failure> {
    let text = Zeroizing::new(text);
    let digits = text.strip_prefix(PREFIX).unwrap_or_default();
    match digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text),
        false => Err(Failure::usage(format!("{source} holds no token: {PREFIX} and {DIGITS} hexadecimal digits"))),
    }
}

fn write(path: &Path, text: &[u8]) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io(format_args!("could not write {}", path.display()), &error);
    newfile::replace_private(path, text).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_hashes_and_names_are_used_once() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(dir.path().to_owned());
        assert!(load(&home).expect("no file is no tokens").is_empty());
        for number in 0..TOKENS_MAX {
            let name = format!("{number:0>64}");
            let token = create(&home, &name, Role::Admin).expect("made");
            let kept = load(&home).expect("the longest file is read back");
            assert_eq!(roles(&kept).last(), Some(&(hash(&token), Role::Admin)));
        }
        let refused = |name: &str| create(&home, name, Role::Read).expect_err("refused").message;
        assert!(refused("one-more").contains("the limit"));
        remove(&home, &format!("{:0>64}", 0)).expect("there");
        assert!(refused(&format!("{:0>64}", 1)).contains("already"));
        assert!(refused("a\nb").contains("no name"));
        assert_eq!(remove(&home, "nobody").expect_err("missing").exit, Exit::NotFound);
    }

    /// Each of many at once finds what the ones before it wrote, and the file is never half of one.
    #[test]
    fn tokens_made_and_removed_at_once_are_all_made_and_removed() {
        const AT_ONCE: usize = 8;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let home = Home::new(dir.path().to_owned());
        let start = std::sync::Barrier::new(AT_ONCE);
        std::thread::scope(|scope| {
            for number in 0..AT_ONCE {
                let (home, start) = (&home, &start);
                scope.spawn(move || {
                    create(home, &format!("gone-{number}"), Role::Read).expect("made");
                    start.wait();
                    create(home, &format!("kept-{number}"), Role::Write).expect("made");
                    remove(home, &format!("gone-{number}")).expect("there");
                });
            }
        });
        let mut names: Vec<String> = load(&home).expect("whole").into_iter().map(|token| token.name).collect();
        names.sort();
        assert_eq!(names, (0..AT_ONCE).map(|number| format!("kept-{number}")).collect::<Vec<_>>());
    }

    #[test]
    fn files_of_tokens_have_one_reading() {
        let hash = "0".repeat(64);
        let token =
            |name: &str, role: &str, hash: &str| format!(r#"{{"name":"{name}","role":"{role}","hash":"{hash}"}}"#);
        let file = |tokens: &str| format!(r#"{{"version":1,"tokens":[{tokens}]}}"#);
        let good = token("a", "write", &hash);
        assert_eq!(parse(file(&good).as_bytes()).expect("valid").len(), 1);
        for (text, says) in [
            (String::new(), ""),
            (file(&good).replace(":1,", ":2,"), "version 2"),
            (file(&format!("{good},{good}")), "twice"),
            (file(&token("a", "owner", &hash)), "owner"),
            (file(&token("a b", "read", &hash)), "no name"),
            (file(&token("a", "read", &hash[1..])), "the hash of"),
            (file(&vec![good.clone(); TOKENS_MAX + 1].join(",")), "65 tokens"),
            (file(&good).replace(r#""role""#, r#""more":1,"role""#), "more"),
        ] {
            let problem = parse(text.as_bytes()).expect_err(&text);
            assert!(problem.contains(says), "{problem} does not say {says:?}");
        }
    }
}
