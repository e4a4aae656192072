//! Text into lines, lines into sections: the grammar of RFC 8866 that every SDP shares.

/// Chromium's largest offer is under 7 kB and 260 lines; ten times that is no offer.
pub(super) const SDP_BYTES_MAX: usize = 64 * 1024;
const LINES_MAX: usize = 2_000;

/// One `x=value` line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub letter: u8,
    pub value: &'a str,
}

/// The session section, or an m-line with what belongs to it.
#[derive(Debug, Default)]
pub(super) struct Section<'a> {
    /// The value of `m=`; `None` for the session section.
    pub media: Option<&'a str>,
    attributes: Vec<(&'a str, &'a str)>,
}

impl<'a> Section<'a> {
    /// Name and value of each `a=`, in order.
    pub fn attributes(&self) -> &[(&'a str, &'a str)] {
        &self.attributes
    }

    /// The values of `a=name` and `a=name:value`, in order.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'a str> + 's {
        self.attributes.iter().filter(move |(n, _)| *n == name).map(|(_, value)| *value)
    }

    pub fn first(&self, name: &str) -> Option<&'a str> {
        self.all(name).next()
    }

    pub fn has(&self, name: &str) -> bool {
        self.first(name).is_some()
    }
}

/// Takes text apart. Line ends may be CRLF or LF (Safari has been seen to mix them); blank lines are skipped.
///
/// # Errors
/// What is wrong, and the line's number from 1; 0 when it is not about a line.
pub(super) fn lines(text: &str) -> Result<Vec<Line<'_>>, (usize, &'static str)> {
    if text.len() > SDP_BYTES_MAX {
        return Err((0, "too long"));
    }
    let mut lines = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let at = |what| (index + 1, what);
        if has_control(line) {
            return Err(at("a control character"));
        }
        if lines.len() == LINES_MAX {
            return Err(at("too many lines"));
        }
        match line.as_bytes() {
            [letter, b'=', ..] if letter.is_ascii_lowercase() => {
                lines.push(Line { letter: *letter, value: line[2..].trim_end() });
            }
            _ => return Err(at("not of the form x=value")),
        }
    }
    Ok(lines)
}

/// As `char::is_control` says; nearly all lines are ASCII.
fn has_control(line: &str) -> bool {
    match line.is_ascii() {
        true => line.bytes().any(|b| b.is_ascii_control()),
        false => line.chars().any(char::is_control),
    }
}

/// The session section, then one per m-line.
pub(super) fn sections<'a>(lines: &[Line<'a>]) -> Vec<Section<'a>> {
    let mut sections = vec![Section::default()];
    for line in lines {
        match line.letter {
            b'm' => sections.push(Section { media: Some(line.value), attributes: Vec::new() }),
            b'a' => {
                let (name, value) = line.value.split_once(':').unwrap_or((line.value, ""));
                let last = sections.last_mut().expect("the session section is always there");
                last.attributes.push((name, value.trim()));
            }
            // Addresses, bandwidth and times say nothing that ICE does not say better.
            _ => {}
        }
    }
    sections
}
