//! XML of topology files, element by element, with lines.
//!
//! Files come from other machines, so nothing in them is trusted: who reads here keeps a stack of its own instead of
//! recursing, and what could make a reader hang or run out of memory is refused with the line where it stands: more than
//! [`MAX_DEPTH`] levels, more than [`MAX_BYTES`], elements with hundreds of attributes, declarations of entities (a few
//! of them expand to gigabytes). A file that ends too early is an error at the place where it ends.

use std::str::FromStr;
use std::sync::Arc;

use quick_xml::XmlVersion;
use quick_xml::errors::{Error, IllFormedError};
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::reader::Reader;

use super::builder::MAX_DEPTH;
use super::source::{Place, TopologyError};

/// How long a file may be. The largest machines fill a few MiB.
const MAX_BYTES: usize = 64 << 20;
/// How many attributes an element may have. Real ones have up to 17.
const MAX_ATTRIBUTES: usize = 128;

/// A piece of a file.
#[derive(Debug)]
pub(super) enum Token {
    /// An element begins.
    Open(Element),
    /// The innermost open element ends.
    Close,
    /// Text in an element.
    Text(String),
}

/// The beginning of an element.
#[derive(Debug)]
pub(super) struct Element {
    /// Its name.
    pub(super) name: String,
    /// Where it begins.
    pub(super) place: Place,
    attributes: Vec<(String, String)>,
}

impl Element {
    /// What an attribute says; `None` when it is not there.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.attributes.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// What an attribute says that has to be there.
    pub(super) fn require(&self, key: &str) -> Result<&str, TopologyError> {
        self.get(key).ok_or_else(|| self.wrong(format!("<{}> has no `{key}`", self.name)))
    }

    /// A number in decimal, if the attribute is there.
    pub(super) fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>, TopologyError> {
        self.parsed(key, "number of its kind", |text| text.parse().ok())
    }

    /// What `read` makes of an attribute, if it is there; an error names the attribute, its text and `what` it is not.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        what: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, TopologyError> {
        let Some(text) = self.get(key) else { return Ok(None) };
        let value = read(text.trim());
        value.map(Some).ok_or_else(|| self.wrong(format!("{key}=\"{text}\" is no {what}")))
    }

    /// An error at this element.
    pub(super) fn wrong(&self, reason: impl Into<String>) -> TopologyError {
        self.place.error(reason)
    }
}

/// A file, read from its beginning to its end.
pub(super) struct Xml<'a> {
    reader: Reader<&'a [u8]>,
    text: &'a str,
    file: Arc<str>,
    /// Bytes whose line ends are counted, and the line that follows them.
    counted: (usize, u64),
    /// The lines of the open elements, outermost first.
    open: Vec<u64>,
    root_is_over: bool,
}

impl<'a> Xml<'a> {
    /// Begins to read `bytes`, whose root element has to be `root`. `what` is a file of that kind, for the message.
    pub(super) fn new(
        bytes: &'a [u8],
        file: &str,
        root: &str,
        what: &str,
    ) -> Result<(Xml<'a>, Element), TopologyError> {
        let file: Arc<str> = file.into();
        let text = checked_text(bytes, &file)?;
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        let mut xml = Xml { reader, text, file, counted: (0, 1), open: Vec::new(), root_is_over: false };
        match xml.next()? {
            Some(Token::Open(element)) if element.name == root => Ok((xml, element)),
            Some(Token::Open(element)) => {
                Err(element.wrong(format!("the root element is <{}>; {what} has <{root}>", element.name)))
            }
            _ => Err(xml.wrong_here("there is no element in it")),
        }
    }

    /// The next piece; `None` after the root element has ended.
    pub(super) fn next(&mut self) -> Result<Option<Token>, TopologyError> {
        loop {
            let begins = self.reader.buffer_position() as usize;
            let event = self.reader.read_event().map_err(|error| self.malformed(&error))?;
            let place = self.place(begins);
            let token = match event {
                Event::Start(start) => Token::Open(self.opened(&start, &place)?),
                Event::End(_) => self.closed(&place)?,
                Event::Text(text) => Token::Text(text.xml10_content().into_owned()),
                Event::CData(text) => Token::Text(text.xml10_content().into_owned()),
                Event::GeneralRef(reference) => Token::Text(resolved(&reference, &place)?),
                Event::DocType(text) if text.contains("<!ENTITY") => {
                    return Err(place.error("it declares entities, which topology files do not need"));
                }
                Event::Eof if self.open.is_empty() => return Ok(None),
                Event::Eof => return Err(self.cut_off()),
                _ => continue,
            };
            match &token {
                Token::Text(text) if self.open.is_empty() => {
                    let blank = text.len() - text.trim_start().len();
                    if blank < text.len() {
                        let place = self.place(begins + blank);
                        return Err(place.error("there is text outside of the root element"));
                    }
                }
                _ => return Ok(Some(token)),
            }
        }
    }

    fn opened(&mut self, start: &BytesStart<'_>, place: &Place) -> Result<Element, TopologyError> {
        if self.root_is_over {
            return Err(place.error("there is a second root element"));
        }
        if self.open.len() == MAX_DEPTH {
            return Err(place.error(format!("elements are nested more than {MAX_DEPTH} levels deep")));
        }
        self.open.push(place.line.unwrap_or(1));
        let name = start.name().0.to_string();
        let mut attributes = Vec::new();
        for attribute in start.attributes() {
            if attributes.len() == MAX_ATTRIBUTES {
                return Err(place.error(format!("<{name}> has more than {MAX_ATTRIBUTES} attributes")));
            }
            let attribute = attribute.map_err(|error| place.error(format!("<{name}>: {error}")))?;
            let value = attribute
                .normalized_value(XmlVersion::Implicit1_0)
                .map_err(|error| place.error(format!("<{name}>, `{}`: {error}", attribute.key.0)))?;
            attributes.push((attribute.key.0.to_string(), value.into_owned()));
        }
        Ok(Element { name, place: place.clone(), attributes })
    }

    fn closed(&mut self, place: &Place) -> Result<Token, TopologyError> {
        self.open.pop().ok_or_else(|| place.error("an element ends that did not begin"))?;
        self.root_is_over = self.open.is_empty();
        Ok(Token::Close)
    }

    /// Where the byte at `position` is.
    fn place(&mut self, position: usize) -> Place {
        let (from, line) = self.counted;
        if position > from {
            let ends = self.text.as_bytes()[from..position].iter().filter(|byte| **byte == b'\n').count();
            self.counted = (position, line + ends as u64);
        }
        Place { file: self.file.clone(), line: Some(self.counted.1) }
    }

    fn wrong_here(&mut self, reason: &str) -> TopologyError {
        let place = self.place(self.reader.buffer_position() as usize);
        place.error(reason)
    }

    fn cut_off(&mut self) -> TopologyError {
        let place = self.place(self.text.len());
        let reason = match self.open.last() {
            Some(line) => format!("the file ends inside the element that line {line} begins"),
            None => "the file ends too early".to_string(),
        };
        place.error(reason)
    }

    fn malformed(&mut self, error: &Error) -> TopologyError {
        match error {
            // Every syntax error is markup that the end of the file cuts off.
            Error::Syntax(_) => self.cut_off(),
            Error::IllFormed(IllFormedError::MissingEndTag(_)) => self.cut_off(),
            error => {
                let place = self.place(self.reader.error_position() as usize);
                place.error(error.to_string())
            }
        }
    }
}

fn checked_text<'a>(bytes: &'a [u8], file: &Arc<str>) -> Result<&'a str, TopologyError> {
    let whole_file = Place::file(file.clone());
    if bytes.len() > MAX_BYTES {
        let reason = format!("holds {} bytes; the limit is {MAX_BYTES}", bytes.len());
        return Err(whole_file.error(reason));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = error.valid_up_to();
        let line = 1 + bytes[..good].iter().filter(|byte| **byte == b'\n').count() as u64;
        whole_file.line(line).error(format!("byte {good} of the file is not UTF-8 text"))
    })?;
    if text.trim().is_empty() {
        return Err(whole_file.error("the file is empty"));
    }
    Ok(text)
}

/// The character that `&...;` stands for.
fn resolved(reference: &BytesRef<'_>, place: &Place) -> Result<String, TopologyError> {
    let unknown = || place.error(format!("`&{};` stands for nothing", &**reference));
    match &**reference {
        "lt" => Ok("<".into()),
        "gt" => Ok(">".into()),
        "amp" => Ok("&".into()),
        "quot" => Ok("\"".into()),
        "apos" => Ok("'".into()),
        _ => match reference.resolve_char_ref() {
            Ok(Some(character)) => Ok(character.to_string()),
            _ => Err(unknown()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads everything; how many elements there are, or the message.
    fn elements(text: &str) -> Result<usize, String> {
        let (mut xml, _) =
            Xml::new(text.as_bytes(), "x.xml", "a", "a test").map_err(|error| error.to_string())?;
        let mut count = 1;
        while let Some(token) = xml.next().map_err(|error| error.to_string())? {
            count += usize::from(matches!(token, Token::Open(_)));
        }
        Ok(count)
    }

    fn refusal(text: &str) -> String {
        elements(text).expect_err(text)
    }

    #[test]
    fn elements_know_their_lines_and_attributes() {
        let text = "<?xml version=\"1.0\"?>\n<!DOCTYPE a SYSTEM \"a.dtd\">\n<!-- two\nlines -->\n<a>\n <b\n  c=\"1 &lt; 2\"/>\n</a>\n";
        let (mut xml, root) = Xml::new(text.as_bytes(), "x.xml", "a", "a test").unwrap();
        assert_eq!(root.place.line, Some(5));
        let inner = loop {
            if let Some(Token::Open(element)) = xml.next().unwrap() {
                break element;
            }
        };
        assert_eq!((inner.place.line, inner.get("c"), inner.get("d")), (Some(6), Some("1 < 2"), None));
        assert_eq!(elements(text), Ok(2));
    }

    #[test]
    fn a_file_that_is_cut_off_says_where_it_ends() {
        let text = "<a>\n<b c=\"d\">\n\n</b>\n</a>";
        for end in 1..text.len() {
            let line = text[..end].lines().count().max(1) as u64 + u64::from(text[..end].ends_with('\n'));
            let message = refusal(&text[..end]);
            assert!(message.starts_with(&format!("x.xml:{line}: the file ends")), "{end}: {message}");
        }
        assert_eq!(refusal("<a>\n<b>\n"), "x.xml:3: the file ends inside the element that line 2 begins");
    }

    #[test]
    fn what_would_make_a_reader_hang_is_refused() {
        let deep = format!("<a>\n{}", "<b>".repeat(10_000));
        assert_eq!(refusal(&deep), "x.xml:2: elements are nested more than 1000 levels deep");
        let bomb = "<!DOCTYPE a [\n<!ENTITY x \"xx\">\n<!ENTITY y \"&x;&x;\">\n]>\n<a>&y;</a>";
        assert_eq!(refusal(bomb), "x.xml:1: it declares entities, which topology files do not need");
        let wide = format!("<a {}/>", (0..200).map(|n| format!("b{n}=\"\" ")).collect::<String>());
        assert_eq!(refusal(&wide), "x.xml:1: <a> has more than 128 attributes");
        assert!(refusal(&" ".repeat(MAX_BYTES + 1)).contains("the limit is 67108864"));
    }

    #[test]
    fn what_is_no_xml_is_refused_with_its_line() {
        for (text, line) in [
            ("<a>\n<b></c>\n</a>", ":2:"),
            ("<a>\n&x;\n</a>", ":2:"),
            ("<a>\n<b c=\"&x;\"/></a>", ":2:"),
            ("<a>\n<b c=\"1\" c=\"2\"/></a>", ":2:"),
            ("<a/>\n<a/>", ":2:"),
            ("<a/>\nmore", ":2:"),
            ("\n<b/>", ":2:"),
            ("\n", ": the file is empty"),
            ("", ": the file is empty"),
            ("no markup", ":1:"),
        ] {
            let message = refusal(text);
            assert!(message.starts_with(&format!("x.xml{line}")), "{text:?}: {message}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_refused_with_their_line() {
        let error = Xml::new(b"<a>\n\xff</a>", "x.xml", "a", "a test").err().unwrap();
        assert_eq!(error.to_string(), "x.xml:2: byte 4 of the file is not UTF-8 text");
    }
}
