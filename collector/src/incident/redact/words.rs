//! Names become digits; sentences lose their names.

use crate::incident::store::time_of;
use crate::verdict::policy::is_action;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};

/// Words of our own sentences, of the kernel's for a hold's end, and units.
const WORDS: &str = include_str!("words.txt");
/// Digits that stand for a name.
const DIGITS: usize = 12;

/// What names are hashed with.
pub struct Key([u8; 32]);

impl Key {
    /// With fewer bytes a key could be guessed, and names with it.
    pub const LEAST_BYTES: usize = 16;

    /// One that nobody knows.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Key(bytes))
    }

    /// From a secret of any length.
    #[must_use]
    pub fn from_bytes(secret: &[u8]) -> Self {
        Key(Sha256::digest(secret).into())
    }

    fn digits(&self, name: &str) -> String {
        // A key of one block's size or less, and the digest cut to a part of it: neither
        // can it be lengthened nor a name's digest be told from the key.
        let digest = Sha256::new().chain_update(self.0).chain_update(name).finalize();
        digest
            .iter()
            .flat_map(|byte| [byte >> 4, byte & 15])
            .take(DIGITS)
            .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
            .collect()
    }
}

/// What takes names out of one incident.
pub(super) struct Redactor<'k> {
    key: &'k Key,
    names: Vec<String>,
    words: BTreeSet<&'static str>,
}

impl<'k> Redactor<'k> {
    /// `names` are those that sentences could have in them.
    pub(super) fn new(key: &'k Key, names: BTreeSet<String>) -> Self {
        let mut names: Vec<String> = names.into_iter().collect();
        // The longest first: a name can be part of another.
        names.sort_by_key(|name| std::cmp::Reverse(name.len()));
        Redactor { key, names, words: WORDS.split_whitespace().collect() }
    }

    pub(super) fn name(&self, name: &str) -> String {
        if name.is_empty() { String::new() } else { self.key.digits(name) }
    }

    /// A path part by part; what is no path is a name.
    pub(super) fn path(&self, path: &str) -> String {
        let (path, deleted) = path.strip_suffix(" (deleted)").map_or((path, ""), |path| (path, " (deleted)"));
        // A place that is a URL keeps its slashes, too.
        path.split('/').map(|part| self.name(part)).collect::<Vec<_>>().join("/") + deleted
    }

    /// What a mapping or module is of: the kernel's own marks stay.
    pub(super) fn mapped(&self, name: &str) -> String {
        if matches!(name, "[heap]" | "[stack]" | "[vdso]" | "[vvar]" | "[vvar_vclock]" | "[vsyscall]") {
            name.to_owned()
        } else {
            self.path(name)
        }
    }

    /// `6.12.0-acme` without who built it.
    pub(super) fn release(&self, release: &str) -> String {
        let end = release.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(release.len());
        let (version, rest) = release.split_at(end);
        if rest.is_empty() { version.to_owned() } else { format!("{version}-{}", self.name(rest)) }
    }

    /// Names of the kernel's files and counters.
    pub(super) fn counters(&self, counters: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
        let is_kernels = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        let keep = |name: String| if is_kernels(&name) { name } else { self.name(&name) };
        counters.into_iter().map(|(name, value)| (keep(name), value)).collect()
    }

    /// One of our sentences.
    pub(super) fn sentence(&self, sentence: &str) -> String {
        let mut redacted = String::new();
        let mut rest = sentence;
        let mut plain_from = rest;
        let mut before = None;
        while let Some(c) = rest.chars().next() {
            let found = is_edge(before, c).then(|| self.names.iter().find(|name| begins_with(rest, name))).flatten();
            if let Some(name) = found {
                self.words_of(&plain_from[..plain_from.len() - rest.len()], &mut redacted);
                redacted.push_str(&self.mapped(name));
                before = name.chars().last();
                rest = &rest[name.len()..];
                plain_from = rest;
            } else {
                before = Some(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        self.words_of(plain_from, &mut redacted);
        redacted
    }

    /// Text in which no known name is, word by word.
    fn words_of(&self, text: &str, redacted: &mut String) {
        for piece in text.split_inclusive(char::is_whitespace) {
            let word = piece.trim_end_matches(char::is_whitespace);
            let is_mark = |c: char| !c.is_alphanumeric() && !"/_~.-".contains(c);
            let core = word.trim_start_matches(is_mark).trim_end_matches(|c| is_mark(c) || c == '.');
            match word.find(core).filter(|_| !core.is_empty()) {
                Some(at) if !self.is_ours(core) => {
                    let (lead, tail) = (&word[..at], &word[at + core.len()..]);
                    redacted.push_str(&format!("{lead}{}{tail}", self.path(core)));
                }
                _ => redacted.push_str(word),
            }
            redacted.push_str(&piece[word.len()..]);
        }
    }

    /// A number, or words of the list, whatever is between them.
    fn is_ours(&self, core: &str) -> bool {
        let is_number = core.strip_prefix("0x").map_or_else(
            || core.bytes().all(|b| b.is_ascii_digit() || b".,-".contains(&b)),
            |hex| hex.bytes().all(|b| b.is_ascii_hexdigit()),
        );
        let known = |word: &str| self.words.contains(word.to_lowercase().as_str());
        let between = |c: char| matches!(c, '-' | '(' | ')' | ',' | '=');
        is_number || known(core) || is_action(core) || core.split(between).all(|word| word.is_empty() || known(word))
    }

    /// Time and random part stay where it is one of our names.
    pub(super) fn id(&self, id: &str) -> String {
        match (time_of(id), id.split_once('-'), id.rsplit_once('-')) {
            (Some(_), Some((time, _)), Some((subject, random))) => {
                format!(
                    "{time}-{}-{random}",
                    self.name(subject.strip_prefix(time).unwrap_or(subject).trim_matches('-'))
                )
            }
            _ => self.name(id),
        }
    }

    /// `pid:[4026531836]` stays.
    pub(super) fn namespace(&self, link: String) -> String {
        let number = link.split_once(":[").and_then(|(kind, rest)| Some((kind, rest.strip_suffix(']')?)));
        let kinds =
            ["cgroup", "ipc", "mnt", "net", "pid", "pid_for_children", "time", "time_for_children", "user", "uts"];
        match number {
            Some((kind, number)) if kinds.contains(&kind) && number.bytes().all(|b| b.is_ascii_digit()) => link,
            _ => self.name(&link),
        }
    }
}

/// Whether a name can begin at a character.
fn is_edge(before: Option<char>, c: char) -> bool {
    !c.is_alphanumeric() || !before.is_some_and(char::is_alphanumeric)
}

/// Whether a text begins with a name that goes no further.
fn begins_with(text: &str, name: &str) -> bool {
    let last = name.chars().last();
    text.strip_prefix(name).is_some_and(|rest| {
        !last.is_some_and(char::is_alphanumeric) || !rest.chars().next().is_some_and(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redactor<'k>(key: &'k Key, names: &[&str]) -> Redactor<'k> {
        Redactor::new(key, names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn sentences_keep_their_sense_and_lose_their_names() {
        let key = Key::from_bytes(b"a key of some length");
        let r = redactor(&key, &["my memory", "memory", "/srv/shop", "sort"]);
        let name = |name: &str| key.digits(name);
        for (sentence, expected) in [
            (
                "kill: killed sort [13784], 25.1 MiB came back",
                format!("kill: killed {} [13784], 25.1 MiB came back", name("sort")),
            ),
            ("my memory is full", format!("{} is full", name("my memory"))),
            ("memory is full", format!("{} is full", name("memory"))),
            // No part of a longer word.
            ("what was sorted", "what was sorted".to_owned()),
            // Nobody told of these, and they are not ours.
            ("acme.service is full", format!("{} is full", name("acme.service"))),
            (
                "cannot read /etc/acme/x: no file",
                format!("cannot read /{}/{}/{}: no file", name("etc"), name("acme"), name("x")),
            ),
            ("in /srv/shop.", format!("in /{}/{}.", name("srv"), name("shop"))),
            ("Äcme’s “thing”", format!("{} “{}”", name("Äcme’s"), name("thing"))),
            ("grant=64M", "grant=64M".to_owned()),
            ("at 0x7f00 (a PID)", "at 0x7f00 (a PID)".to_owned()),
            ("", String::new()),
        ] {
            assert_eq!(r.sentence(sentence), expected, "{sentence}");
        }
    }

    #[test]
    fn what_could_tell_who_it_was_is_hashed() {
        let key = Key::from_bytes(b"a key of some length");
        let r = redactor(&key, &[]);
        assert_eq!(r.release("6.12.0"), "6.12.0");
        assert_eq!(r.release("6.12.0-acme"), format!("6.12.0-{}", key.digits("-acme")));
        assert_eq!(r.mapped("[heap]"), "[heap]");
        assert_eq!(r.mapped("[anon:acme]"), key.digits("[anon:acme]"));
        assert_eq!(r.path("/opt/x (deleted)"), format!("/{}/{} (deleted)", key.digits("opt"), key.digits("x")));
        assert_eq!(r.namespace("pid:[4026531836]".into()), "pid:[4026531836]");
        assert_eq!(r.namespace("acme:[1]".into()), key.digits("acme:[1]"));
        let id = format!("20261125T084613.639Z-{}-7ee0a8", key.digits("my-shop"));
        assert_eq!(r.id("20261125T084613.639Z-my-shop-7ee0a8"), id);
        assert_eq!(r.id("my-shop"), key.digits("my-shop"));
        assert_ne!(Key::from_bytes(b"another key of some").digits("my-shop"), key.digits("my-shop"));
    }

    #[test]
    fn the_words_are_sorted_and_no_names_of_folders() {
        let words: Vec<&str> = WORDS.split_whitespace().collect();
        assert!(words.is_sorted() && words.iter().all(|word| *word == word.to_lowercase()));
        for name in ["usr", "lib", "bin", "home", "root", "srv", "etc", "opt", "main", "user"] {
            assert!(!words.contains(&name), "{name}");
        }
    }
}
