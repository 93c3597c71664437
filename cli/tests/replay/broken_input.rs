//! Files that are wrong, in the large: whatever they hold, the reader answers and never panics.

use crate::recordings::recording;
use devpagemap_cli::trace::{Format, bytes, detect};
use flate2::{Compression, write::GzEncoder};
use proptest::prelude::*;
use std::io::Write;

const WSIM: &str = "w.1.10n8m/3n16m\nW.2.16m\nw.3.4n4k-1m\n# a comment\nM.1.VCS1|VCS2\nB.1\nf\n\
    1.RCS.200-600.r1-0-4/w1-10.0\n1.VCS1.*.f-2.0\n2.BCS.800.-2/w2-0/s-1.0\nT.-2\na.-5\nd.500\n1.RCS.5.r3-0-3/-4.1\np.16667\n\
    P.1.-1\nX.1.500\nS.1.-1\nb.2.VCS1.RCS\nt.2\nq.5\nV.1\nv.1.1\ns.-10\n";

const RMV: &str = "seq,time_us,stream,ev,va,size,pref\n\
    0,0.0,app,va_alloc,0x1000,8192,local_invisible>local_visible>local_visible\n\
    1,1.5,app,res_create,,,\n\
    2,2.5,app,res_ref_add,0x1800,,\n\
    3,3.0,app,cpu_map,0x1000,,\n\
    4,3.0,app,va_alloc,0x4000,4096,system\n\
    5,4.0,app,cpu_unmap,0x1000,,\n\
    6,5.0,app,res_ref_remove,0x1000,,\n\
    7,6.0,app,va_free,0x1000,,\n";

/// What happens to a file on its way.
#[derive(Clone, Debug)]
enum Damage {
    Cut(usize),
    Flip(usize, u8),
    Repeat(usize),
    Drop(usize),
    Swap(usize, usize),
    Insert(usize, &'static str),
}

fn damage() -> impl Strategy<Value = Damage> {
    let numbers = prop_oneof![
        Just("-1"),
        Just("0"),
        Just("18446744073709551616"),
        Just("9223372036854775808"),
        Just("4294967295n"),
        Just("\u{fffd}"),
        Just("nan"),
        Just(",,,"),
        Just("..."),
        Just("-"),
        Just("/"),
    ];
    prop_oneof![
        any::<usize>().prop_map(Damage::Cut),
        (any::<usize>(), 1..=255u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        any::<usize>().prop_map(Damage::Repeat),
        any::<usize>().prop_map(Damage::Drop),
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Damage::Swap(a, b)),
        (any::<usize>(), numbers).prop_map(|(at, text)| Damage::Insert(at, text)),
    ]
}

fn damaged(text: &str, damage: &Damage) -> Vec<u8> {
    let mut lines: Vec<&str> = text.lines().collect();
    let mut raw = text.as_bytes().to_vec();
    match *damage {
        Damage::Cut(at) => raw.truncate(at % raw.len()),
        Damage::Flip(at, bits) => {
            let at = at % raw.len();
            raw[at] ^= bits;
        }
        Damage::Insert(at, text) => {
            let at = at % raw.len();
            raw.splice(at..at, text.bytes());
        }
        Damage::Repeat(at) => {
            let at = at % lines.len();
            lines.insert(at, lines[at]);
            return lines.join("\n").into_bytes();
        }
        Damage::Drop(at) => {
            lines.remove(at % lines.len());
            return lines.join("\n").into_bytes();
        }
        Damage::Swap(a, b) => {
            let count = lines.len();
            lines.swap(a % count, b % count);
            return lines.join("\n").into_bytes();
        }
    }
    raw
}

/// Reads as `load` does; the message of an error must name the file.
fn read(raw: Vec<u8>, format: Format) -> bool {
    let text = match bytes::decode("mangled", raw) {
        Ok(text) => text,
        Err(error) => {
            assert!(error.to_string().starts_with("mangled"), "{error}");
            return false;
        }
    };
    match detect::parse("mangled", &text, format, 1) {
        Ok(_) => true,
        Err(error) => {
            let message = error.to_string();
            let named = message.starts_with("mangled") || message.starts_with("the format");
            assert!(named && error.exit_status() == 2, "{message}");
            false
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_wsim_file_is_read_or_refused(damages in proptest::collection::vec(damage(), 1..4), explicit: bool) {
        let mut text = WSIM.to_string();
        for damage in &damages {
            text = String::from_utf8_lossy(&damaged(&text, damage)).into_owned();
            if text.is_empty() {
                break;
            }
        }
        read(text.into_bytes(), if explicit { Format::Wsim } else { Format::Auto });
    }

    #[test]
    fn a_damaged_rmv_table_is_read_or_refused(damages in proptest::collection::vec(damage(), 1..4), explicit: bool) {
        let mut text = RMV.to_string();
        for damage in &damages {
            text = String::from_utf8_lossy(&damaged(&text, damage)).into_owned();
            if text.is_empty() {
                break;
            }
        }
        read(text.into_bytes(), if explicit { Format::Rmv } else { Format::Auto });
    }

    #[test]
    fn damaged_bytes_are_text_or_refused(one in damage(), packed: bool) {
        let raw = if packed { gzip(WSIM.as_bytes()) } else { WSIM.as_bytes().to_vec() };
        let raw = match one {
            Damage::Cut(at) => raw[..at % raw.len()].to_vec(),
            Damage::Flip(at, bits) => {
                let mut raw = raw;
                let at = at % raw.len();
                raw[at] ^= bits;
                raw
            }
            _ => raw,
        };
        read(raw, Format::Auto);
    }
}

fn gzip(raw: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(raw).expect("memory takes everything");
    encoder.finish().expect("memory takes everything")
}

#[test]
fn the_undamaged_files_are_read_whether_packed_or_not() {
    for (text, format) in [(WSIM, Format::Wsim), (RMV, Format::Rmv)] {
        assert!(read(text.as_bytes().to_vec(), Format::Auto));
        assert!(read(gzip(text.as_bytes()), Format::Auto));
        assert_eq!(detect::detect("x", text).unwrap(), format);
    }
}

#[test]
fn a_gzip_file_that_is_cut_off_says_where() {
    let raw = gzip(RMV.as_bytes());
    let error = bytes::decode("t.csv.gz", raw[..raw.len() - 20].to_vec()).unwrap_err().to_string();
    assert!(error.starts_with("t.csv.gz:") && error.contains("cut off or damaged"), "{error}");
}

#[test]
fn text_that_is_not_utf8_says_on_which_line() {
    let error = bytes::decode("t.wsim", b"d.1\nd.\xff\n".to_vec()).unwrap_err().to_string();
    assert_eq!(error, "t.wsim:2: byte 6 of the file is not UTF-8 text");
}

#[test]
fn other_formats_are_recognised_and_refused_by_name() {
    for (name, format) in [
        ("pytorch-allocator/silmont_mem.csv.gz", "pytorch"),
        ("minimalloc/A.1048576.csv", "minimalloc"),
        ("mooncake-conversation/conversation_trace.first-half.jsonl.gz", "mooncake"),
        ("kineto-gpu/memory_timeline.raw.json.gz", "kineto"),
    ] {
        let Some(path) = recording(name) else { continue };
        let error =
            devpagemap_cli::trace::load(path.to_str().unwrap(), Format::Auto, 1).unwrap_err().to_string();
        assert!(error.contains(&format!("the format {format} is not part of this build")), "{error}");
    }
}
