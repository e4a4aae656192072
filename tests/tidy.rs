//! House rules that no compiler checks: which module may use which, where `unsafe` may stand, how a file begins.
//!
//! The sources are read as text, so this works on a tree that does not compile. `#[cfg(test)]` code is under the same
//! rules, but may read the clock. Each checker is also run on small inputs of its own, to notice when it goes blind.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// Modules by layer, lowest first. A module uses lower rows only; neighbours in a row do not use each other.
///
/// Layer 0 has two rows: what batches, settings and scenarios are made of, and those themselves.
const LAYERS: &[(&str, &[&str])] = &[
    ("L0", &["id", "limits", "units"]),
    ("L0", &["config", "datagram", "scenario"]),
    ("L1", &["io", "metrics", "sync"]),
    ("L2", &["wire"]),
    ("L3", &["srtp"]),
    ("L4", &["forward", "relay", "session"]),
    ("L5", &["shard"]),
    ("L6", &["control"]),
    ("L7", &["load", "node", "sim"]),
];

/// The only modules that know packet I/O. All others see its batches, in `datagram`.
const USERS_OF_IO: &[&str] = &["load", "node"];

/// What `control` knows of a shard: what they say to each other.
const SHARD_SEEN_BY_CONTROL: &[&str] = &["message", "placement"];

/// Time, randomness and I/O are arguments there.
const SANS_IO: &[&str] = &["wire", "srtp", "session", "forward", "relay", "shard", "sim"];

/// Names by which one gets at a socket or past the standard library to the system.
const SOCKETS: &[&str] = &["UdpSocket", "TcpListener", "TcpStream", "UnixStream", "socket2", "libc", "io_uring"];

/// Folders of `src` in which unsafe code may stand.
const UNSAFE_ISLANDS: &[&str] = &["src/io/", "src/sync/"];

/// Whoever reads a clock says so with an `expect` of this lint (clippy.toml); only these may.
const CLOCK_LINT: &str = "disallowed_methods";
const CLOCK_READERS: &[&str] =
    &["src/main.rs", "src/node/", "src/load/", "src/io/", "src/control/http.rs", "src/sim/mod.rs"];

const ARCHITECTURE_LINES_MAX: usize = 200;

#[test]
fn modules_use_lower_layers_only() {
    tidy(&read("src"), check_dependencies);
}

#[test]
fn every_module_has_its_layer() {
    let sources = read("src");
    tidy(&sources, |s| check_module_is_known(s).into_iter().collect());
    tidy(&sources, check_module_order);
}

#[test]
fn sans_io_modules_name_no_socket() {
    tidy(&read("src"), check_sockets);
}

#[test]
fn unsafe_code_stays_on_its_islands() {
    tidy(&read("src"), check_unsafe);
}

#[test]
fn only_the_edges_read_the_clock() {
    tidy(&read("src"), check_clock);
}

#[test]
fn nothing_is_left_to_do() {
    tidy(&read_all(), check_leftovers);
}

#[test]
fn every_file_begins_with_what_it_is() {
    tidy(&read_all(), |s| check_first_line(s).into_iter().collect());
}

#[test]
fn the_architecture_page_is_short_and_names_every_module() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).ok();
    let modules: BTreeSet<String> = read("src").iter().filter_map(|s| s.module().first().cloned()).collect();
    report(check_architecture(page.as_deref(), &modules));
}

// The rules.

/// Which module a file's paths lead to, and whether it may go there.
fn check_dependencies(source: &Source) -> Vec<Fault> {
    let module = source.module();
    let Some(from) = module.first() else { return Vec::new() };
    let judge = |path: &CratePath| {
        let to = path.segments.first().map(String::as_str).unwrap_or("*");
        if to == from { None } else { refuse(from, to, path.segments.get(1).map(String::as_str)) }
    };
    crate_paths(source, &module).iter().filter_map(|p| Some(source.fault(p.line, judge(p)?))).collect()
}

/// Why `from` may not use `to`; `inner` is what it uses of it.
fn refuse(from: &str, to: &str, inner: Option<&str>) -> Option<String> {
    if to == "*" {
        return Some("names the crate's root: name the module".into());
    }
    let from_row = row_of(from)?; // Another check tells of unknown modules.
    let Some(to_row) = row_of(to) else {
        return Some(format!("`{to}` is no module of the table LAYERS in tests/tidy.rs"));
    };
    let (from_layer, to_layer) = (LAYERS[from_row].0, LAYERS[to_row].0);
    if to_row > from_row {
        return Some(format!("`{from}` ({from_layer}) uses `{to}` ({to_layer}): a module uses lower layers only"));
    }
    if to_row == from_row {
        return Some(format!(
            "`{from}` uses its neighbour `{to}` (both {to_layer}): neighbours do not know each other"
        ));
    }
    if to == "io" && !USERS_OF_IO.contains(&from) {
        return Some(format!("`{from}` uses `io`: only {USERS_OF_IO:?} do, all others see `datagram`"));
    }
    if (from, to) == ("control", "shard") && !inner.is_some_and(|i| SHARD_SEEN_BY_CONTROL.contains(&i)) {
        return Some(format!("`control` uses of `shard` only {SHARD_SEEN_BY_CONTROL:?}"));
    }
    None
}

fn row_of(module: &str) -> Option<usize> {
    LAYERS.iter().position(|(_, modules)| modules.contains(&module))
}

fn check_module_is_known(source: &Source) -> Option<Fault> {
    let module = source.module().into_iter().next()?;
    let unknown = row_of(&module).is_none();
    unknown.then(|| source.fault(1, format!("`{module}` has no layer: put it into LAYERS in tests/tidy.rs")))
}

/// lib.rs lists the modules from the lowest layer to the highest.
fn check_module_order(source: &Source) -> Vec<Fault> {
    if source.path != "src/lib.rs" {
        return Vec::new();
    }
    let mut faults = Vec::new();
    let mut highest = "L0";
    for [keyword, name, end] in source.tokens().array_windows() {
        let Some(row) = row_of(&name.text).filter(|_| keyword.text == "mod" && end.text == ";") else { continue };
        if LAYERS[row].0 < highest {
            faults.push(source.fault(name.line, format!("`{}` stands below a higher layer", name.text)));
        }
        highest = highest.max(LAYERS[row].0);
    }
    faults
}

fn check_sockets(source: &Source) -> Vec<Fault> {
    let module = source.module();
    if !module.first().is_some_and(|m| SANS_IO.contains(&m.as_str())) {
        return Vec::new();
    }
    let sockets = source.tokens().into_iter().filter(|t| SOCKETS.contains(&t.text.as_str()));
    sockets.map(|t| source.fault(t.line, format!("`{}` in `{}`, which does no I/O", t.text, module[0]))).collect()
}

fn check_unsafe(source: &Source) -> Vec<Fault> {
    if UNSAFE_ISLANDS.iter().any(|island| source.path.starts_with(island)) {
        return Vec::new();
    }
    let found = source.tokens().into_iter().filter(|t| t.text == "unsafe");
    found.map(|t| source.fault(t.line, format!("unsafe code outside {UNSAFE_ISLANDS:?}"))).collect()
}

fn check_clock(source: &Source) -> Vec<Fault> {
    let of_tests = ["/tests.rs", "_tests.rs"].iter().any(|end| source.path.ends_with(end));
    if of_tests || CLOCK_READERS.iter().any(|reader| source.path.starts_with(reader)) {
        return Vec::new();
    }
    let tokens = source.tokens();
    // Tests stand last in their file, if not in one of their own.
    let tests = tokens.array_windows().position(|[cfg, _, test, _, _, module]| {
        (cfg.text.as_str(), test.text.as_str(), module.text.as_str()) == ("cfg", "test", "mod")
    });
    let found = tokens[..tests.unwrap_or(tokens.len())].iter().filter(|t| t.text == CLOCK_LINT);
    let message = format!("reads the clock: time is an argument outside {CLOCK_READERS:?}");
    found.map(|t| source.fault(t.line, message.clone())).collect()
}

fn check_leftovers(source: &Source) -> Vec<Fault> {
    let tokens = source.tokens();
    let macros = tokens.array_windows().filter(|[_, bang]| bang.text == "!");
    let left = macros.filter(|[name, _]| ["todo", "unimplemented", "dbg"].contains(&name.text.as_str()));
    left.map(|[name, _]| source.fault(name.line, format!("`{}!` is left over", name.text))).collect()
}

fn check_first_line(source: &Source) -> Option<Fault> {
    let first = source.text.lines().next().unwrap_or_default();
    let named = first.strip_prefix("//! ").is_some_and(|sentence| sentence.contains(' '));
    (!named).then(|| source.fault(1, "the first line is not a `//!` sentence that says what the file is".into()))
}

/// `page`: ARCHITECTURE.md, if there is one. A module is named as `` `id` ``, `id.rs`, `io/` or `io::`.
fn check_architecture(page: Option<&str>, modules: &BTreeSet<String>) -> Vec<Fault> {
    let source = |text: &str| Source { path: "ARCHITECTURE.md".into(), text: text.into() };
    let Some(page) = page else {
        return vec![source("").fault(1, "does not exist".into())];
    };
    let mut faults = Vec::new();
    let lines = page.lines().count();
    if lines >= ARCHITECTURE_LINES_MAX {
        let message = format!("{lines} lines: keep it under {ARCHITECTURE_LINES_MAX}, it is for what rarely changes");
        faults.push(source(page).fault(lines, message));
    }
    let is_named = |module: &str| {
        page.match_indices(module).any(|(at, _)| {
            let (before, after) = (&page[..at], &page[at + module.len()..]);
            let whole = !before.ends_with(|c: char| c.is_alphanumeric() || "_/.".contains(c));
            whole && ["`", ".rs", "/", "::"].iter().any(|end| after.starts_with(end))
        })
    };
    let missing = modules.iter().filter(|m| !is_named(m));
    faults.extend(missing.map(|m| source(page).fault(lines, format!("does not name the module `{m}`"))));
    faults
}

// What the rules read.

/// One file.
struct Source {
    /// From the repository's root, with `/`.
    path: String,
    text: String,
}

/// What is wrong, and where.
#[derive(Debug)]
struct Fault {
    path: String,
    line: usize,
    message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.message)
    }
}

impl Source {
    fn fault(&self, line: usize, message: String) -> Fault {
        Fault { path: self.path.clone(), line, message }
    }

    /// The file's place in the module tree; empty for the roots of library and binary.
    fn module(&self) -> Vec<String> {
        let inner = self.path.strip_prefix("src/").unwrap_or(&self.path).trim_end_matches(".rs");
        let mut module: Vec<String> = inner.split('/').map(str::to_owned).collect();
        if module.len() == 1 && ["lib", "main"].contains(&module[0].as_str())
            || module.last().is_some_and(|m| m == "mod")
        {
            module.pop();
        }
        module
    }

    fn tokens(&self) -> Vec<Token> {
        lex(&self.text)
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read_all() -> Vec<Source> {
    ["src", "tests", "benches"].into_iter().flat_map(read).collect()
}

/// Every `.rs` file in a folder of the repository, sorted by path.
fn read(folder: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("a readable folder").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let path = path.strip_prefix(root()).expect("a path below the root");
                sources.push(Source { path: path.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    assert!(!sources.is_empty(), "no sources in {folder}: is the check looking at the wrong place?");
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

fn tidy(sources: &[Source], check: impl Fn(&Source) -> Vec<Fault>) {
    report(sources.iter().flat_map(check).collect());
}

#[track_caller]
fn report(faults: Vec<Fault>) {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    assert!(faults.is_empty(), "{} found:\n{}\n", faults.len(), lines.join("\n"));
}

/// A path that starts at the crate's root: `["shard", "message", "Command"]`; a glob ends with `*`.
#[derive(Debug, PartialEq)]
struct CratePath {
    line: usize,
    segments: Vec<String>,
}

/// Every path by which a file names something of this crate: `crate::…`, and `self::…` or `super::…`, which may climb
/// up to the root too.
fn crate_paths(source: &Source, module: &[String]) -> Vec<CratePath> {
    let tokens = source.tokens();
    let mut paths = Vec::new();
    // Where we are: the file's module, then the modules opened by `mod name {` with the depth of their brace.
    let mut inside = module.to_vec();
    let mut opened = Vec::new();
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        let next = |n: usize| tokens.get(at + n).map_or("", |t| t.text.as_str());
        let starts_path = at == 0 || tokens[at - 1].text != "::";
        match token.text.as_str() {
            "mod" if next(2) == "{" => {
                inside.push(next(1).to_owned());
                opened.push(depth);
            }
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if opened.last() == Some(&depth) {
                    opened.pop();
                    inside.pop();
                }
            }
            "crate" if next(1) == "as" => paths.push(CratePath { line: token.line, segments: vec!["*".into()] }),
            "crate" if starts_path && next(1) == "::" => {
                read_path(&tokens, at + 2, Vec::new(), &mut paths);
            }
            "self" | "super" if starts_path && next(1) == "::" => {
                read_path(&tokens, at, inside.clone(), &mut paths);
            }
            _ => {}
        }
    }
    paths
}

/// Reads a path or a group of paths, `a::{b, c::*}`; returns the position after it.
fn read_path(tokens: &[Token], mut at: usize, mut prefix: Vec<String>, paths: &mut Vec<CratePath>) -> usize {
    let text = |at: usize| tokens.get(at).map_or("", |t| t.text.as_str());
    let line = tokens.get(at).map_or(0, |t| t.line);
    loop {
        match text(at) {
            "{" => {
                at += 1;
                while !["}", ""].contains(&text(at)) {
                    at = read_path(tokens, at, prefix.clone(), paths);
                    // `as name`, and the comma.
                    while ![",", "}", ""].contains(&text(at)) {
                        at += 1;
                    }
                    at += usize::from(text(at) == ",");
                }
                return at + 1;
            }
            "super" => {
                prefix.pop();
            }
            "self" => {}
            segment => prefix.push(segment.to_owned()),
        }
        at += 1;
        let goes_on = text(at) == "::" && text(at + 1) != "<";
        if !goes_on {
            paths.push(CratePath { line, segments: prefix });
            return at;
        }
        at += 1;
    }
}

/// A word, `::`, or any other single character of code.
#[derive(Debug, PartialEq)]
struct Token {
    line: usize,
    text: String,
}

/// Takes code apart. Comments, strings and character literals are left out.
fn lex(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let word = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => string(rest),
            '\'' => quote(rest),
            'r' | 'b' | 'c' if word <= 2 && is_raw_string(&rest[word..]) && rest[..word].contains('r') => {
                word + raw_string(&rest[word..])
            }
            'b' | 'c' if word == 1 && rest[1..].starts_with('"') => 1 + string(&rest[1..]),
            'b' if word == 1 && rest[1..].starts_with('\'') => 1 + quote(&rest[1..]),
            c if c.is_whitespace() => c.len_utf8(),
            _ => 0,
        };
        let used = if skipped > 0 {
            skipped
        } else {
            let used = match first {
                ':' if rest.starts_with("::") => 2,
                c if is_word(c) => word,
                c => c.len_utf8(),
            };
            tokens.push(Token { line, text: rest[..used].to_owned() });
            used
        };
        line += rest[..used].matches('\n').count();
        rest = &rest[used..];
    }
    tokens
}

/// Bytes of a block comment; they nest.
fn block_comment(text: &str) -> usize {
    let (mut at, mut depth) = (0, 0);
    while at < text.len() {
        let step = if text[at..].starts_with("/*") {
            depth += 1;
            2
        } else if text[at..].starts_with("*/") {
            depth -= 1;
            2
        } else {
            text[at..].chars().next().map_or(1, char::len_utf8)
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Bytes of a string literal, quotes included.
fn string(text: &str) -> usize {
    let mut escaped = true; // The opening quote ends nothing.
    for (at, c) in text.char_indices() {
        match c {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

fn is_raw_string(text: &str) -> bool {
    text.trim_start_matches('#').starts_with('"')
}

/// Bytes of a raw string literal from its first `#` or quote on.
fn raw_string(text: &str) -> usize {
    let hashes = text.len() - text.trim_start_matches('#').len();
    let end = format!("\"{}", &text[..hashes]);
    text[hashes + 1..].find(&end).map_or(text.len(), |at| hashes + 1 + at + end.len())
}

/// Bytes of a character literal, or of a lifetime's quote.
fn quote(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        // The escaped character itself may be a quote.
        Some((_, '\\')) => text[3..].find('\'').map_or(text.len(), |at| 3 + at + 1),
        Some(_) => match chars.next() {
            Some((at, '\'')) => at + 1,
            _ => 1,
        },
        None => 1,
    }
}

// The rules on inputs of our own.

#[track_caller]
fn finds<I: IntoIterator<Item = Fault>>(rule: impl Fn(&Source) -> I, path: &str, text: &str, expected: &[&str]) {
    let source = Source { path: path.into(), text: text.into() };
    let found: Vec<String> = rule(&source).into_iter().map(|f| f.to_string()).collect();
    let as_expected = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.contains(e));
    assert!(as_expected, "{path}: {text}\nexpected {expected:#?}\nfound {found:#?}");
}

#[test]
fn a_use_upwards_or_sideways_is_found() {
    let dependencies = |path, text, expected: &[&str]| finds(check_dependencies, path, text, expected);
    dependencies("src/shard/mod.rs", "use crate::session::Session;\nuse crate::wire;", &[]);
    dependencies(
        "src/wire/sdp.rs",
        "\nuse crate::shard::Shard;",
        &["src/wire/sdp.rs:2: `wire` (L2) uses `shard` (L5)"],
    );
    dependencies("src/session/mod.rs", "use crate::forward::table;", &["`session` uses its neighbour `forward`"]);
    dependencies("src/shard/mod.rs", "use crate::io;", &["only [\"load\", \"node\"] do"]);
    dependencies("src/node/driver.rs", "use crate::io::Backend;", &[]);
    dependencies("src/datagram.rs", "use crate::{limits, units::Instant};", &[]);
    dependencies("src/units.rs", "use crate::limits;", &["neighbour `limits`"]);
    dependencies("src/shard/mod.rs", "use crate::utilities::x;", &["`utilities` is no module of the table"]);
}

#[test]
fn a_use_is_found_however_it_is_written() {
    let dependencies = |path, text, expected: &[&str]| finds(check_dependencies, path, text, expected);
    let groups = "use crate::{id, shard::{self, Shard as S},\n wire::{sdp::*, codec},\nnode};";
    dependencies(
        "src/wire/a.rs",
        groups,
        &["a.rs:1: `wire` (L2) uses `shard`", ":1: ", "a.rs:3: `wire` (L2) uses `node`"],
    );
    dependencies("src/wire/a.rs", "fn f(x: &crate::shard::Shard) { crate::node::run::<u8>() }", &["`shard`", "`node`"]);
    dependencies("src/wire/a.rs", "#[cfg(test)] mod tests { use crate::shard; }", &["`shard`"]);
    dependencies("src/wire/a.rs", "use super::super::shard;", &["`shard`"]);
    dependencies("src/wire/a.rs", "mod tests { use super::super::sdp; } use super::super::shard;", &["`shard`"]);
    dependencies("src/datagram.rs", "use super::{units, io};", &["`io`"]);
    dependencies("src/wire/sdp/a.rs", "use self::b; use super::super::codec; use super::lines; self.x();", &[]);
    dependencies("src/wire/a.rs", "use crate::*;", &["crate's root"]);
    dependencies("src/wire/a.rs", "use crate as root;", &["crate's root"]);
    dependencies("src/wire/a.rs", "macro_rules! m { () => { $crate::shard::f() } }", &["`shard`"]);
}

#[test]
fn what_is_not_code_is_not_a_use() {
    let text = r####"
        // crate::shard
        /* crate::shard /* nested */ crate::shard */
        const S: &[&str] = &["crate::shard", r#"" crate::shard "#, "\" crate::shard \\"];
        const B: &[&[u8]] = &[b"crate::shard", br"crate::shard \"];
        const C: [char; 3] = ['"', '\'', '\\']; const D: [u8; 2] = [b'"', b'\''];
        fn f<'a>(x: &'a str) -> &'a str { x }
        pub(crate) struct T;
        use crate::node;
    "####;
    finds(check_dependencies, "src/wire/a.rs", text, &["src/wire/a.rs:9: `wire` (L2) uses `node`"]);
}

#[test]
fn control_sees_only_a_shards_messages() {
    let dependencies = |text, expected: &[&str]| finds(check_dependencies, "src/control/mod.rs", text, expected);
    dependencies("use crate::shard::{message::{Command, Event}, placement::Slot};", &[]);
    dependencies("use crate::shard::Shard;", &["only [\"message\", \"placement\"]"]);
    dependencies("use crate::shard::{self, message};", &["only [\"message\", \"placement\"]"]);
    finds(check_dependencies, "src/node/mod.rs", "use crate::shard::Shard;", &[]);
}

#[test]
fn an_unknown_module_and_a_wrong_order_are_found() {
    let known = |path, expected: &[&str]| finds(check_module_is_known, path, "", expected);
    known("src/lib.rs", &[]);
    known("src/main.rs", &[]);
    known("src/sync/mod.rs", &[]);
    known("src/utilities/mod.rs", &["`utilities` has no layer"]);
    known("src/helper.rs", &["`helper` has no layer"]);
    finds(check_module_order, "src/lib.rs", "pub mod config;\npub mod id;\nmod io;\nmod node;", &[]);
    finds(check_module_order, "src/lib.rs", "mod io;\nmod shard;\nmod wire;", &["src/lib.rs:3: `wire`"]);
}

#[test]
fn sockets_unsafe_code_clocks_and_leftovers_are_found() {
    finds(check_sockets, "src/session/mod.rs", "use std::net::{SocketAddr,\nUdpSocket};", &["mod.rs:2: `UdpSocket`"]);
    finds(check_sockets, "src/shard/mod.rs", "socket2::Socket::new()", &["`socket2` in `shard`"]);
    finds(check_sockets, "src/io/mod.rs", "use std::net::UdpSocket;", &[]);

    finds(check_unsafe, "src/wire/mod.rs", "#![deny(unsafe_code)] // unsafe\n unsafe { f() }", &["mod.rs:2: unsafe"]);
    finds(check_unsafe, "src/io/uring.rs", "unsafe { f() }", &[]);

    let reads = "#[expect(clippy::disallowed_methods, reason = \"\")]";
    finds(check_clock, "src/shard/mod.rs", reads, &["src/shard/mod.rs:1: reads the clock"]);
    finds(check_clock, "src/control/http.rs", reads, &[]);
    finds(check_clock, "src/control/tests.rs", reads, &[]);
    let tested = format!("#[cfg(test)]\nmod tests {{ {reads} }}");
    finds(check_clock, "src/shard/mod.rs", &tested, &[]);
    finds(check_clock, "src/shard/mod.rs", &format!("{reads} fn f() {{}} {tested}"), &["reads the clock"]);

    finds(
        check_leftovers,
        "tests/a.rs",
        "fn f() { todo!() }\nfn g() { dbg!(1); // dbg!\n}",
        &["`todo!`", ":2: `dbg!`"],
    );
    finds(check_leftovers, "tests/a.rs", "const TODO: &str = \"todo!()\"; let todo = 1;", &[]);
}

#[test]
fn a_file_without_its_sentence_is_found() {
    for text in ["", "use std::fmt;", "// What it is.", "//!", "//! Codecs", "\n//! What it is."] {
        finds(check_first_line, "src/a.rs", text, &["src/a.rs:1: the first line"]);
    }
    finds(check_first_line, "src/a.rs", "//! What it is.\n", &[]);
}

#[test]
fn a_missing_long_or_incomplete_architecture_page_is_found() {
    let check = |page, expected: &[&str]| {
        let modules = ["id", "io", "session"].map(str::to_owned).into();
        finds(|_| check_architecture(page, &modules), "", "", expected);
    };
    check(Some("`id.rs`, `io/` and `session`\n"), &[]);
    check(Some("L0 id.rs\nL1 io/\nL4 session::negotiate\n"), &[]);
    check(None, &["ARCHITECTURE.md:1: does not exist"]);
    check(Some("`id`, `session`, `src/audio/` and io, as a word"), &["does not name the module `io`"]);
    check(Some(&"`id` `io` `session`\n".repeat(200)), &["200 lines"]);
}
