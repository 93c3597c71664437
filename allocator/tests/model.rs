//! The allocator against a plain model: one flag a page, everything found by looking at all of them.

use std::ops::Range;

use devpagemap_allocator::{AllocError, Buddy, Direction, Mode, PAGE_BYTES, Request, Span};
use proptest::prelude::*;
use proptest::sample::Index;

/// One flag a page: free.
struct Model {
    free: Vec<bool>,
}

/// A request in pages, as the model understands it.
struct Wanted {
    len: usize,
    granule: usize,
    window: Range<usize>,
    contiguous: bool,
}

impl Wanted {
    fn of(request: &Request, pages: usize) -> Wanted {
        let (block_bytes, contiguous) = match request.mode {
            Mode::Scatter { min_block_bytes } => (min_block_bytes.max(request.align_bytes), false),
            Mode::Contiguous => (request.align_bytes, true),
        };
        let granule = (block_bytes / PAGE_BYTES).max(1) as usize;
        let end =
            if request.range.end == u64::MAX { pages } else { (request.range.end / PAGE_BYTES) as usize };
        let start = ((request.range.start / PAGE_BYTES) as usize).next_multiple_of(granule);
        Wanted {
            len: (request.len_bytes / PAGE_BYTES) as usize,
            granule,
            window: start.min(end)..end,
            contiguous,
        }
    }
}

impl Model {
    fn new(pages: usize) -> Model {
        Model { free: vec![true; pages] }
    }

    fn free_pages(&self) -> u64 {
        self.free.iter().filter(|&&free| free).count() as u64
    }

    fn runs(&self) -> Vec<Span> {
        let mut runs: Vec<Span> = Vec::new();
        for (page, _) in self.free.iter().enumerate().filter(|&(_, &free)| free) {
            let start_bytes = page as u64 * PAGE_BYTES;
            match runs.last_mut() {
                Some(last) if last.end_bytes() == start_bytes => last.len_bytes += PAGE_BYTES,
                _ => runs.push(Span { start_bytes, len_bytes: PAGE_BYTES }),
            }
        }
        runs
    }

    fn longest_run_bytes(&self) -> u64 {
        self.runs().iter().map(|run| run.len_bytes).max().unwrap_or(0)
    }

    /// Free pages from `start` on, at most a granule, up to the window's end.
    fn free_from(&self, start: usize, wanted: &Wanted) -> usize {
        let end = wanted.window.end.min(start + wanted.granule);
        self.free[start..end].iter().take_while(|&&free| free).count()
    }

    /// How many of the wanted pages can be had.
    fn available(&self, wanted: &Wanted) -> usize {
        let places = wanted.window.clone().step_by(wanted.granule);
        if wanted.contiguous {
            // A run goes on for as long as places in a row are wholly free.
            let (mut run, mut longest) = (0, 0);
            for start in places {
                let prefix = self.free_from(start, wanted);
                longest = longest.max(run + prefix);
                run = if prefix == wanted.granule { run + prefix } else { 0 };
            }
            return longest.min(wanted.len);
        }
        let tail = wanted.len % wanted.granule;
        let (mut whole, mut tail_fits_a_part) = (0, false);
        for start in places {
            let prefix = self.free_from(start, wanted);
            if prefix == wanted.granule {
                whole += 1;
            } else {
                tail_fits_a_part |= tail > 0 && prefix >= tail;
            }
        }
        let blocks = wanted.len / wanted.granule;
        if whole < blocks || tail == 0 {
            return blocks.min(whole) * wanted.granule;
        }
        let with_tail = whole > blocks || tail_fits_a_part;
        blocks * wanted.granule + if with_tail { tail } else { 0 }
    }

    fn set(&mut self, span: Span, free: bool) {
        let (start, end) = (span.start_bytes / PAGE_BYTES, span.end_bytes() / PAGE_BYTES);
        for page in start..end {
            assert_ne!(self.free[page as usize], free, "page {page} of {span} is that already");
            self.free[page as usize] = free;
        }
    }

    /// Checks what an allocation returned, and marks it as taken.
    fn take(&mut self, spans: &[Span], request: &Request) {
        let wanted = Wanted::of(request, self.free.len());
        let granule_bytes = wanted.granule as u64 * PAGE_BYTES;
        for pair in spans.windows(2) {
            assert!(pair[0].end_bytes() < pair[1].start_bytes, "{spans:?} are not sorted or not merged");
        }
        let odd = spans.iter().filter(|span| span.len_bytes % granule_bytes != 0).count();
        assert!(odd <= 1, "{spans:?}: more than one block is no multiple of {granule_bytes}");
        assert!(!wanted.contiguous || spans.len() <= 1, "{spans:?} is not contiguous");
        for &span in spans {
            assert_eq!(span.start_bytes % granule_bytes, 0, "{span} is not aligned");
            let window = wanted.window.start as u64 * PAGE_BYTES..=wanted.window.end as u64 * PAGE_BYTES;
            assert!(
                window.contains(&span.start_bytes) && window.contains(&span.end_bytes()),
                "{span} is outside"
            );
            self.set(span, false);
        }
    }
}

#[derive(Clone, Debug)]
struct AnyRequest {
    len_log2: f64,
    align_order: u32,
    min_order: u32,
    contiguous: bool,
    top_down: bool,
    range: Option<(Index, Index)>,
    exact: bool,
}

impl AnyRequest {
    fn request(&self, pages: usize) -> Request {
        let mut len = (self.len_log2.exp2() as u64).max(1);
        let mut request = Request::new(0).aligned(PAGE_BYTES << self.align_order);
        if let Some((a, b)) = self.range {
            let (a, b) = (a.index(pages) as u64, b.index(pages) as u64);
            let (start, end) = (a.min(b), a.max(b) + 1);
            let end = if self.exact { (start + len).min(pages as u64) } else { end };
            len = if self.exact { end - start } else { len };
            request = request.within(start * PAGE_BYTES..end * PAGE_BYTES);
        }
        if self.contiguous {
            request = request.contiguous();
        } else {
            request = request.scattered(PAGE_BYTES << self.min_order);
        }
        if self.top_down {
            request.direction = Direction::TopDown;
        }
        request.len_bytes = len * PAGE_BYTES;
        request
    }
}

fn any_request(max_log2: f64) -> impl Strategy<Value = AnyRequest> {
    let order = || prop_oneof![3 => Just(0u32), 1 => 0u32..9];
    let range = prop_oneof![Just(None), any::<(Index, Index)>().prop_map(Some)];
    (0.0..max_log2, order(), order(), any::<bool>(), any::<bool>(), range, any::<bool>()).prop_map(
        |(len_log2, align_order, min_order, contiguous, top_down, range, exact)| AnyRequest {
            len_log2,
            align_order,
            min_order,
            contiguous,
            top_down,
            range,
            exact,
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Alloc(AnyRequest),
    AllocUpTo(AnyRequest),
    /// Every page from one to another that is taken, as the longest possible spans.
    FreeTaken(Index, Index),
    /// Some span, whatever its state.
    FreeAny(Index, Index),
    /// Checkerboards and combs: every `period`-th group of `width` pages is freed, the rest is allocated.
    Comb {
        period: usize,
        width: usize,
    },
}

fn any_step(max_log2: f64) -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => any_request(max_log2).prop_map(Step::Alloc),
        1 => any_request(max_log2 + 1.0).prop_map(Step::AllocUpTo),
        4 => any::<(Index, Index)>().prop_map(|(a, b)| Step::FreeTaken(a, b)),
        1 => any::<(Index, Index)>().prop_map(|(a, b)| Step::FreeAny(a, b)),
        1 => (2usize..40, 1usize..20).prop_map(|(period, width)| Step::Comb { period, width }),
    ]
}

fn alloc(buddy: &mut Buddy, model: &mut Model, request: &Request) {
    let wanted = Wanted::of(request, model.free.len());
    let available = model.available(&wanted);
    match buddy.alloc(request) {
        Ok(spans) => {
            assert_eq!(available, wanted.len, "{request:?}: {spans:?} where the model finds less");
            assert_eq!(spans.iter().map(|span| span.len_bytes).sum::<u64>(), request.len_bytes);
            model.take(&spans, request);
        }
        Err(error) => {
            assert!(available < wanted.len, "{request:?}: {error} where the model finds a place");
            check_error(error, request, model, &wanted);
        }
    }
}

fn check_error(error: AllocError, request: &Request, model: &Model, wanted: &Wanted) {
    let window = request.range.start..request.range.end.min(model.free.len() as u64 * PAGE_BYTES);
    let clipped = model.runs().into_iter().filter_map(|run| {
        let (start, end) = (run.start_bytes.max(window.start), run.end_bytes().min(window.end));
        (start < end).then(|| end - start)
    });
    let longest = clipped.max().unwrap_or(0);
    let free = model.free[wanted.window.clone()].iter().filter(|&&free| free).count() as u64 * PAGE_BYTES;
    match error {
        AllocError::TooLarge { wanted_bytes, range_bytes } => {
            assert_eq!(
                (wanted_bytes, range_bytes),
                (request.len_bytes, wanted.window.len() as u64 * PAGE_BYTES)
            );
            assert!(wanted.window.len() < wanted.len);
        }
        AllocError::Exhausted { wanted_bytes, free_bytes } => {
            assert_eq!((wanted_bytes, free_bytes), (request.len_bytes, free));
            assert!(free_bytes < wanted_bytes);
        }
        AllocError::Fragmented { wanted_bytes, largest_bytes } => {
            assert_eq!((wanted_bytes, largest_bytes), (request.len_bytes, longest));
            assert!(free >= wanted_bytes);
        }
        AllocError::Busy { start_bytes, len_bytes, taken_at_bytes } => {
            assert_eq!(len_bytes, request.len_bytes);
            assert!((start_bytes..start_bytes + len_bytes).contains(&taken_at_bytes));
            assert!(!model.free[(taken_at_bytes / PAGE_BYTES) as usize]);
        }
        error => panic!("{request:?} is valid, but: {error}"),
    }
}

fn free(buddy: &mut Buddy, model: &mut Model, span: Span) {
    let pages = (span.start_bytes / PAGE_BYTES) as usize..(span.end_bytes() / PAGE_BYTES) as usize;
    match model.free[pages.clone()].iter().position(|&free| free) {
        None => {
            buddy.free(span).unwrap();
            model.set(span, true);
        }
        Some(at) => {
            let free_at_bytes = (pages.start + at) as u64 * PAGE_BYTES;
            let Span { start_bytes, len_bytes } = span;
            assert_eq!(
                buddy.free(span),
                Err(AllocError::AlreadyFree { start_bytes, len_bytes, free_at_bytes })
            );
        }
    }
}

fn span_between(a: Index, b: Index, pages: usize) -> Span {
    let (a, b) = (a.index(pages) as u64, b.index(pages) as u64);
    Span { start_bytes: a.min(b) * PAGE_BYTES, len_bytes: (a.max(b) - a.min(b) + 1) * PAGE_BYTES }
}

/// The taken parts of `span`.
fn taken_in(model: &Model, span: Span) -> Vec<Span> {
    let mut taken: Vec<Span> = Vec::new();
    for page in span.start_bytes / PAGE_BYTES..span.end_bytes() / PAGE_BYTES {
        let start_bytes = page * PAGE_BYTES;
        match taken.last_mut() {
            _ if model.free[page as usize] => {}
            Some(last) if last.end_bytes() == start_bytes => last.len_bytes += PAGE_BYTES,
            _ => taken.push(Span { start_bytes, len_bytes: PAGE_BYTES }),
        }
    }
    taken
}

fn comb(buddy: &mut Buddy, model: &mut Model, period: usize, width: usize) {
    for page in 0..model.free.len() {
        let should_be_free = page % period < width.min(period - 1);
        let span = Span { start_bytes: page as u64 * PAGE_BYTES, len_bytes: PAGE_BYTES };
        if model.free[page] && !should_be_free {
            assert_eq!(buddy.alloc(&Request::exactly(span)).unwrap(), [span]);
            model.set(span, false);
        } else if !model.free[page] && should_be_free {
            free(buddy, model, span);
        }
    }
}

fn run(buddy: &mut Buddy, model: &mut Model, step: &Step) {
    let pages = model.free.len();
    match *step {
        Step::Alloc(ref any) => alloc(buddy, model, &any.request(pages)),
        Step::AllocUpTo(ref any) => {
            let request = any.request(pages);
            let mut wanted = Wanted::of(&request, pages);
            wanted.len = wanted.len.min(wanted.window.len());
            let spans = buddy.alloc_up_to(&request);
            let got = spans.iter().map(|span| span.len_bytes / PAGE_BYTES).sum::<u64>() as usize;
            assert_eq!(got, model.available(&wanted), "{request:?}: {spans:?}");
            model.take(&spans, &request);
        }
        Step::FreeTaken(a, b) => {
            for span in taken_in(model, span_between(a, b, pages)) {
                free(buddy, model, span);
            }
        }
        Step::FreeAny(a, b) => free(buddy, model, span_between(a, b, pages)),
        Step::Comb { period, width } => comb(buddy, model, period, width),
    }
}

fn compare(buddy: &Buddy, model: &Model, probe: Range<u64>) {
    buddy.debug_check_consistency();
    assert_eq!(buddy.free_bytes(), model.free_pages() * PAGE_BYTES);
    assert_eq!(buddy.largest_free_bytes(), model.longest_run_bytes());
    assert!(buddy.free_spans().eq(model.runs()));
    let pages = (probe.start / PAGE_BYTES) as usize..(probe.end / PAGE_BYTES) as usize;
    let free_pages = model.free[pages.clone()].iter().filter(|&&free| free).count();
    assert_eq!(buddy.free_bytes_in(probe.clone()), free_pages as u64 * PAGE_BYTES);
    let span = Span { start_bytes: probe.start, len_bytes: probe.end - probe.start };
    assert_eq!(buddy.is_free(span), free_pages == pages.len());
}

fn check(pages: usize, steps: &[(Step, Index, Index)]) {
    let mut buddy = Buddy::new(pages as u64 * PAGE_BYTES).unwrap();
    let mut model = Model::new(pages);
    for (step, a, b) in steps {
        run(&mut buddy, &mut model, step);
        let span = span_between(*a, *b, pages);
        compare(&buddy, &model, span.start_bytes..span.end_bytes());
    }
    // However it got here: with everything given back it is as new.
    for span in taken_in(&model, Span { start_bytes: 0, len_bytes: pages as u64 * PAGE_BYTES }) {
        buddy.free(span).unwrap();
    }
    let fresh = Buddy::new(pages as u64 * PAGE_BYTES).unwrap();
    buddy.debug_check_consistency();
    assert_eq!(buddy.largest_free_bytes(), pages as u64 * PAGE_BYTES);
    assert!((0..40).all(|order| buddy.free_blocks(order) == fresh.free_blocks(order)));
}

fn any_steps(max_log2: f64, count: usize) -> impl Strategy<Value = Vec<(Step, Index, Index)>> {
    prop::collection::vec((any_step(max_log2), any::<Index>(), any::<Index>()), 1..count)
}

/// A failure is printed with its smallest input; nothing is written beside the sources.
fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(768))]

    #[test]
    fn a_small_region_does_what_the_model_does(pages in 1usize..=300, steps in any_steps(8.0, 60)) {
        check(pages, &steps);
    }

    #[test]
    fn a_region_around_a_level_boundary_does_what_the_model_does(
        pages in prop_oneof![62usize..=66, 126usize..=130, 4030usize..=4230, 8191usize..=8200],
        steps in any_steps(12.0, 60),
    ) {
        check(pages, &steps);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_region_of_four_levels_does_what_the_model_does(
        pages in prop_oneof![262_140usize..=262_148, 300_000usize..=600_000],
        steps in any_steps(19.0, 30),
    ) {
        check(pages, &steps);
    }
}
