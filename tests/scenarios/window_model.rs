//! Random sequences of windows, moves and returns, against a model that is nothing but lists: which windows there are, who is
//! taken first, when the BAR is full, and what a peer sees in each window.

use std::ops::Range;

use devpagemap::{Bar, Buffer, Device, Error, Place, Size, SoftwareGpu, Window};
use proptest::prelude::*;

use crate::setup::{Lab, fill, pattern};

const P: u64 = 4096;
const BAR_PAGES: u64 = 6;
const BUFFER_PAGES: u64 = 8;
const BUFFERS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Map { buffer: usize, first: u64, pages: u64 },
    Unmap { at: usize },
    MoveAll,
}

fn step() -> impl Strategy<Value = Step> {
    let map = (0..BUFFERS, 0..BUFFER_PAGES, 1..4u64);
    prop_oneof![
        8 => map.prop_map(|(buffer, first, pages)| Step::Map { buffer, first, pages }),
        7 => any::<usize>().prop_map(|at| Step::Unmap { at }),
        1 => Just(Step::MoveAll),
    ]
}

/// A window, as the model sees it.
#[derive(Debug)]
struct Shown {
    buffer: usize,
    pages: Range<u64>,
    users: usize,
    used: bool,
    moved: bool,
    /// Off the list: it was asked for while somebody had it.
    lent: bool,
}

/// Windows by number, dead ones included, and those on the list, the first to go first.
#[derive(Debug, Default)]
struct Model {
    shown: Vec<Option<Shown>>,
    list: Vec<usize>,
    reclaimed: u64,
}

impl Model {
    fn pages_of(&self, number: usize) -> u64 {
        self.shown[number].as_ref().map_or(0, |shown| shown.pages.end - shown.pages.start)
    }

    fn used_pages(&self) -> u64 {
        (0..self.shown.len()).map(|number| self.pages_of(number)).sum()
    }

    fn at(&self, buffer: usize, page: u64) -> Option<usize> {
        let is_here = |shown: &Shown| !shown.moved && shown.buffer == buffer && shown.pages.contains(&page);
        self.shown.iter().position(|shown| shown.as_ref().is_some_and(is_here))
    }

    /// The windows that show `pages` afterwards, or nothing when the BAR is full.
    fn map(&mut self, buffer: usize, pages: Range<u64>) -> Option<Vec<usize>> {
        let (mut pieces, mut gaps, mut page) = (Vec::new(), Vec::<Range<u64>>::new(), pages.start);
        while page < pages.end {
            match (self.at(buffer, page), gaps.last_mut()) {
                (Some(number), _) => {
                    let shown = self.shown[number].as_mut().expect("it is here");
                    (shown.users, shown.used, page) = (shown.users + 1, true, shown.pages.end - 1);
                    pieces.push(number);
                }
                (None, Some(gap)) if gap.end == page => gap.end += 1,
                (None, _) => gaps.push(page..page + 1),
            }
            page += 1;
        }
        if !self.hunt(gaps.iter().map(|gap| gap.end - gap.start).sum()) {
            self.unmap(&pieces);
            return None;
        }
        for pages in gaps {
            let new = Shown { buffer, pages, users: 1, used: false, moved: false, lent: false };
            self.list.push(self.shown.len());
            pieces.push(self.shown.len());
            self.shown.push(Some(new));
        }
        pieces.sort_by_key(|number| self.shown[*number].as_ref().expect("it is here").pages.start);
        Some(pieces)
    }

    fn hunt(&mut self, wanted: u64) -> bool {
        while BAR_PAGES - self.used_pages() < wanted {
            if self.list.is_empty() {
                return false;
            }
            let number = self.list.remove(0);
            let shown = self.shown[number].as_mut().expect("what is listed is there");
            if shown.users > 0 {
                shown.lent = true;
            } else if std::mem::take(&mut shown.used) {
                self.list.push(number);
            } else {
                self.shown[number] = None;
                self.reclaimed += 1;
            }
        }
        true
    }

    fn unmap(&mut self, pieces: &[usize]) {
        for number in pieces {
            let shown = self.shown[*number].as_mut().expect("what is used is there");
            shown.users -= 1;
            if shown.users == 0 && shown.moved {
                self.shown[*number] = None;
            } else if shown.users == 0 && std::mem::take(&mut shown.lent) {
                self.list.push(*number);
            }
        }
    }

    fn move_all(&mut self) {
        self.list.clear();
        for shown in &mut self.shown {
            if let Some(moved) = shown {
                moved.moved = true;
                if moved.users == 0 {
                    *shown = None;
                }
            }
        }
    }
}

/// A window that is kept, and what the model knows of it.
struct Kept {
    window: Window,
    buffer: usize,
    pieces: Vec<usize>,
}

struct Run {
    device: Lab,
    buffers: Vec<Buffer>,
    kept: Vec<Kept>,
    model: Model,
}

impl Run {
    fn new() -> Run {
        let gpu = SoftwareGpu::builder().build().expect("threads for the rings");
        let device =
            Device::builder(gpu).vram(Size::bytes(32 * P)).bar(Bar::Windows(Size::bytes(BAR_PAGES * P)));
        let device = device.system(Size::mib(4)).build().expect("a small device");
        let buffer = |seed| {
            let buffer = device.buffer(Size::bytes(BUFFER_PAGES * P)).prefer(Place::VRAM).create();
            let buffer = buffer.expect("it fits");
            fill(&device, &buffer, seed).expect("there is room");
            buffer
        };
        let buffers = (0..BUFFERS as u64).map(buffer).collect();
        Run { device, buffers, kept: Vec::new(), model: Model::default() }
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Map { buffer, first, pages } => {
                let pages = first..(first + pages).min(BUFFER_PAGES);
                let window = self.buffers[buffer].window(pages.start * P..pages.end * P);
                match (window, self.model.map(buffer, pages)) {
                    (Ok(window), Some(pieces)) => self.kept.push(Kept { window, buffer, pieces }),
                    (Err(Error::ApertureFull { .. }), None) => {}
                    (window, pieces) => panic!("{step:?}: {window:?}, and the model says {pieces:?}"),
                }
            }
            Step::Unmap { at } if !self.kept.is_empty() => {
                let kept = self.kept.remove(at % self.kept.len());
                drop(kept.window);
                self.model.unmap(&kept.pieces);
            }
            Step::Unmap { .. } => {}
            Step::MoveAll => {
                let all =
                    self.device.buffer(Size::bytes(32 * P)).prefer(Place::VRAM).create().expect("it fits");
                all.place_now().expect("nothing is pinned");
                self.model.move_all();
            }
        }
    }

    fn check(&self) {
        let stats = self.device.stats();
        assert_eq!(stats.window_bytes, self.model.used_pages() * P);
        assert_eq!(stats.windows_made, self.model.shown.len() as u64);
        assert_eq!(stats.windows_reclaimed, self.model.reclaimed);
        self.kept.iter().for_each(|kept| self.check_kept(kept));
    }

    /// A window shows the bytes of its buffer, or nothing once that has moved.
    fn check_kept(&self, kept: &Kept) {
        let is_moved = |number: &usize| self.model.shown[*number].as_ref().is_none_or(|shown| shown.moved);
        assert_eq!(kept.window.is_current(), !kept.pieces.iter().any(is_moved));
        self.buffers[kept.buffer].wait().expect("its bytes arrive");
        let mut at = kept.window.bytes().start;
        for extent in kept.window.extents() {
            let mut bytes = vec![0xa5; extent.len_bytes as usize];
            let shown = self.device.driver().read_bar(extent.addr, &mut bytes);
            assert_eq!(shown.is_ok(), kept.window.is_current());
            if shown.is_ok() {
                pattern::check(kept.buffer as u64, at, &bytes).expect("the bytes of its buffer");
            }
            at += extent.len_bytes;
        }
        assert_eq!(at, kept.window.bytes().end);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn windows_do_what_a_model_made_of_lists_does(steps in prop::collection::vec(step(), 1..80)) {
        let mut run = Run::new();
        for step in &steps {
            run.take(step);
            run.check();
        }
        run.kept.clear();
        run.buffers.clear();
        run.device.wait_idle();
        let stats = run.device.stats();
        prop_assert_eq!((stats.window_bytes, stats.window_pending_bytes, stats.vram_used_bytes), (0, 0, 0));
    }
}
