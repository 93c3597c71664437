//! The three messages, byte by byte.
//!
//! ```text
//!   Offer, 128 bytes                      Answer, 64 bytes            Verdict, 48 bytes
//!     0  magic "DPMoffer"                   0  magic "DPManswr"         0  magic "DPMverdt"
//!     8  version, u32                       8  version, u32             8  version, u32
//!    12  length of the header, u32         12  status, u32             12  status, u32
//!    16  bytes of the dma-buf, u64         16  bytes compared, u64     16  bytes compared, u64
//!    24  seed of what they are, u64        24  first wrong offset      24  first wrong offset
//!    32  sum of their 64-bit words, u64    32  expected there          32  expected there
//!    40  seed of the answer, u64           40  found there             40  found there
//!    48  flags, u32: 1 may be written      48  1 if it wrote, u32
//!    52  zero, u32                         52  zeros
//!    56  exporter, 24 bytes, zero-filled
//!    80  name, 48 bytes, zero-filled
//! ```

use super::refusal::Refusal;
use crate::replay::pattern::{Pattern, Wrong};

/// The newest version, and the only one so far.
pub const VERSION: u32 = 1;
/// Whole pages of this size.
const PAGE_BYTES: u64 = 4096;
const EXPORTER_BYTES: usize = 24;
const NAME_BYTES: usize = 48;
const MAY_BE_WRITTEN: u32 = 1;
/// Statuses.
const ALL_RIGHT: u32 = 0;
const WRONG_BYTES: u32 = 1;

/// A message of a fixed length.
pub trait Message: Sized {
    /// What people call it.
    const WHAT: &'static str;
    /// How it begins.
    const MAGIC: [u8; 8];
    /// How long it is.
    const BYTES: usize;

    /// What follows magic and version.
    fn put(&self, fields: &mut Fields);

    /// The same, read.
    ///
    /// # Errors
    /// What is wrong with it.
    fn take(fields: &mut Taken<'_>) -> Result<Self, Refusal>;

    /// The message as bytes.
    fn encode(&self) -> Vec<u8> {
        let mut fields = Fields(Vec::with_capacity(Self::BYTES));
        fields.0.extend(Self::MAGIC);
        fields.u32(VERSION);
        self.put(&mut fields);
        fields.0.resize(Self::BYTES, 0);
        fields.0
    }

    /// Reads a whole message.
    ///
    /// # Errors
    /// What is wrong with it: length, magic, version, then its fields.
    fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let awaited = Self::WHAT;
        let cut_off = || Refusal::Truncated { awaited, bytes: bytes.len(), wanted_bytes: Self::BYTES };
        // Magic and version stand where they stand in every version: what comes from elsewhere is told so whatever its length.
        let head = bytes.first_chunk::<8>().ok_or_else(cut_off)?;
        if *head != Self::MAGIC {
            return Err(Refusal::WrongMagic { awaited, found: *head });
        }
        let mut fields = Taken(&bytes[8..]);
        match fields.u32().ok_or_else(cut_off)? {
            0 => return Err(Refusal::NoVersion),
            VERSION => {}
            version => return Err(Refusal::FutureVersion { version, known: VERSION }),
        }
        if bytes.len() < Self::BYTES {
            return Err(cut_off());
        }
        if bytes.len() > Self::BYTES {
            return Err(Refusal::TooLong { awaited, wanted_bytes: Self::BYTES });
        }
        Self::take(&mut fields)
    }
}

/// Fields that are written one after the other.
pub struct Fields(Vec<u8>);

impl Fields {
    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    /// Cut off where it does not fit, at a whole letter.
    fn text(&mut self, text: &str, bytes: usize) {
        let end = text.floor_char_boundary(bytes);
        self.0.extend(&text.as_bytes()[..end]);
        self.0.resize(self.0.len() + bytes - end, 0);
    }
}

/// Fields that are read one after the other.
pub struct Taken<'a>(&'a [u8]);

impl Taken<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// After the length has been looked at.
    fn known_u32(&mut self) -> u32 {
        self.u32().expect("the length was checked")
    }

    fn known_u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array().expect("the length was checked"))
    }

    fn text<const N: usize>(&mut self, what: &'static str) -> Result<String, Refusal> {
        let bytes: [u8; N] = self.array().expect("the length was checked");
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(N);
        let text = std::str::from_utf8(&bytes[..end]).ok().filter(|text| !text.chars().any(char::is_control));
        text.map(str::to_owned).ok_or(Refusal::NoText { what })
    }
}

/// What goes with the descriptor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// How large the dma-buf is.
    pub size_bytes: u64,
    /// Stands for its bytes: see [`bytes_of`].
    pub seed: u64,
    /// Stands for the bytes that the importer shall write.
    pub answer_seed: u64,
    /// Whether it may write.
    pub writable: bool,
    /// Who exported it, as `--via` calls it.
    pub exporter: String,
    /// What the buffer is called.
    pub name: String,
}

/// The bytes that a seed stands for: word `i` is `key + i * 0x9e3779b97f4a7c15`, with a key mixed from the seed.
pub fn bytes_of(seed: u64) -> Pattern {
    Pattern::of(seed, 0, 1)
}

impl Offer {
    /// Compares what it says with the dma-buf that came with it.
    ///
    /// # Errors
    /// What it lies about.
    pub fn agrees_with(&self, dma_buf: &devpagemap::DmaBuf) -> Result<(), Refusal> {
        if self.size_bytes != dma_buf.len_bytes() {
            return Err(Refusal::LyingSize {
                says_bytes: self.size_bytes,
                dma_buf_bytes: dma_buf.len_bytes(),
            });
        }
        if self.writable && !dma_buf.is_writable() {
            return Err(Refusal::LyingRights);
        }
        Ok(())
    }
}

impl Message for Offer {
    const WHAT: &'static str = "header";
    const MAGIC: [u8; 8] = *b"DPMoffer";
    const BYTES: usize = 128;

    fn put(&self, fields: &mut Fields) {
        fields.u32(Self::BYTES as u32);
        fields.u64(self.size_bytes);
        fields.u64(self.seed);
        fields.u64(bytes_of(self.seed).sum(self.size_bytes));
        fields.u64(self.answer_seed);
        fields.u32(if self.writable { MAY_BE_WRITTEN } else { 0 });
        fields.u32(0);
        fields.text(&self.exporter, EXPORTER_BYTES);
        fields.text(&self.name, NAME_BYTES);
    }

    fn take(fields: &mut Taken<'_>) -> Result<Offer, Refusal> {
        let says_bytes = fields.known_u32();
        if says_bytes as usize != Self::BYTES {
            return Err(Refusal::WrongLength { says_bytes, wanted_bytes: Self::BYTES });
        }
        let (size_bytes, seed, says) = (fields.known_u64(), fields.known_u64(), fields.known_u64());
        if size_bytes == 0 || size_bytes % PAGE_BYTES != 0 {
            return Err(Refusal::ImpossibleSize { says_bytes: size_bytes });
        }
        let wanted = bytes_of(seed).sum(size_bytes);
        if says != wanted {
            return Err(Refusal::WrongSum { says, wanted });
        }
        let (answer_seed, flags, _zero) = (fields.known_u64(), fields.known_u32(), fields.known_u32());
        let exporter = fields.text::<EXPORTER_BYTES>("exporter")?;
        let name = fields.text::<NAME_BYTES>("name")?;
        Ok(Offer { size_bytes, seed, answer_seed, writable: flags & MAY_BE_WRITTEN != 0, exporter, name })
    }
}

/// What a comparison of all bytes came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many were compared.
    pub bytes: u64,
    /// The first that was wrong.
    pub wrong: Option<Wrong>,
}

impl Comparison {
    fn put(&self, fields: &mut Fields) {
        fields.u32(if self.wrong.is_some() { WRONG_BYTES } else { ALL_RIGHT });
        fields.u64(self.bytes);
        let wrong = self.wrong.unwrap_or(Wrong { offset_bytes: 0, expected: 0, found: 0 });
        fields.u64(wrong.offset_bytes);
        fields.u64(wrong.expected);
        fields.u64(wrong.found);
    }

    fn take(fields: &mut Taken<'_>) -> Result<Comparison, Refusal> {
        let (status, bytes) = (fields.known_u32(), fields.known_u64());
        let (offset_bytes, expected, found) = (fields.known_u64(), fields.known_u64(), fields.known_u64());
        match status {
            ALL_RIGHT => Ok(Comparison { bytes, wrong: None }),
            WRONG_BYTES => Ok(Comparison { bytes, wrong: Some(Wrong { offset_bytes, expected, found }) }),
            status => Err(Refusal::UnknownStatus { status }),
        }
    }
}

/// What an importer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it read.
    pub read: Comparison,
    /// Whether it wrote the bytes that the offer's answer seed stands for.
    pub wrote: bool,
}

impl Message for Answer {
    const WHAT: &'static str = "answer";
    const MAGIC: [u8; 8] = *b"DPManswr";
    const BYTES: usize = 64;

    fn put(&self, fields: &mut Fields) {
        self.read.put(fields);
        fields.u32(u32::from(self.wrote));
    }

    fn take(fields: &mut Taken<'_>) -> Result<Answer, Refusal> {
        let read = Comparison::take(fields)?;
        Ok(Answer { read, wrote: fields.known_u32() != 0 })
    }
}

/// What an exporter found where the importer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict(pub Comparison);

impl Message for Verdict {
    const WHAT: &'static str = "verdict";
    const MAGIC: [u8; 8] = *b"DPMverdt";
    const BYTES: usize = 48;

    fn put(&self, fields: &mut Fields) {
        self.0.put(fields);
    }

    fn take(fields: &mut Taken<'_>) -> Result<Verdict, Refusal> {
        Comparison::take(fields).map(Verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer() -> Offer {
        Offer {
            size_bytes: 8192,
            seed: 7,
            answer_seed: 8,
            writable: true,
            exporter: "udmabuf".into(),
            name: "frame 1".into(),
        }
    }

    fn changed(at: usize, bytes: &[u8]) -> Result<Offer, Refusal> {
        let mut message = offer().encode();
        message[at..at + bytes.len()].copy_from_slice(bytes);
        Offer::decode(&message)
    }

    #[test]
    fn what_was_written_is_read() {
        let wrong = Some(Wrong { offset_bytes: 4096, expected: 1, found: 2 });
        assert_eq!(offer().encode().len(), Offer::BYTES);
        assert_eq!(Offer::decode(&offer().encode()), Ok(offer()));
        for wrong in [None, wrong] {
            for wrote in [false, true] {
                let answer = Answer { read: Comparison { bytes: 8192, wrong }, wrote };
                assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
            }
            let verdict = Verdict(Comparison { bytes: 8192, wrong });
            assert_eq!(Verdict::decode(&verdict.encode()), Ok(verdict));
        }
    }

    #[test]
    fn every_lie_of_a_header_has_its_own_refusal() {
        assert_eq!(changed(0, b"RIFF"), Err(Refusal::WrongMagic { awaited: "header", found: *b"RIFFffer" }));
        assert_eq!(changed(8, &[7, 0, 0, 0]), Err(Refusal::FutureVersion { version: 7, known: 1 }));
        assert_eq!(changed(8, &[0; 4]), Err(Refusal::NoVersion));
        assert_eq!(changed(12, &[64]), Err(Refusal::WrongLength { says_bytes: 64, wanted_bytes: 128 }));
        assert_eq!(changed(16, &[0; 8]), Err(Refusal::ImpossibleSize { says_bytes: 0 }));
        assert_eq!(changed(16, &[1]), Err(Refusal::ImpossibleSize { says_bytes: 8193 }));
        assert!(matches!(changed(16, &(12_288_u64).to_le_bytes()), Err(Refusal::WrongSum { .. })));
        assert!(matches!(changed(24, &[9]), Err(Refusal::WrongSum { .. })));
        assert_eq!(changed(56, &[0xff]), Err(Refusal::NoText { what: "exporter" }));
        assert_eq!(changed(80, b"\x1b[2J"), Err(Refusal::NoText { what: "name" }));
        let mut long = offer().encode();
        long.push(0);
        assert_eq!(Offer::decode(&long), Err(Refusal::TooLong { awaited: "header", wanted_bytes: 128 }));
    }

    #[test]
    fn a_header_that_is_cut_off_anywhere_is_told_so() {
        let whole = offer().encode();
        for bytes in 0..whole.len() {
            let refusal = Refusal::Truncated { awaited: "header", bytes, wanted_bytes: 128 };
            assert_eq!(Offer::decode(&whole[..bytes]), Err(refusal));
        }
    }

    #[test]
    fn names_that_are_too_long_end_at_a_whole_letter() {
        let long = Offer { name: "ä".repeat(40), exporter: "x".repeat(30), ..offer() };
        let read = Offer::decode(&long.encode()).expect("cut off, it fits");
        assert_eq!((read.name, read.exporter), ("ä".repeat(24), "x".repeat(24)));
    }

    #[test]
    fn a_sum_is_that_of_the_words() {
        for (seed, size_bytes) in [(1, 8), (2, 4096), (u64::MAX, 8192)] {
            let mut bytes = vec![0; size_bytes];
            bytes_of(seed).fill(0, &mut bytes);
            let words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
            let sum = words.fold(0, u64::wrapping_add);
            assert_eq!(bytes_of(seed).sum(size_bytes as u64), sum);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_at_all_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            let mut bytes = bytes;
            if known && bytes.len() >= 12 {
                bytes[..8].copy_from_slice(&Offer::MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            }
            if let Ok(offer) = Offer::decode(&bytes) {
                prop_assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
            }
            let _never_panics = (Answer::decode(&bytes), Verdict::decode(&bytes));
        }
    }
}
