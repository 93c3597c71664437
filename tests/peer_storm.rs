//! Sixteen peers map, read, unmap and are told to let go, while buffers move, make way and come back, and the CPU takes its reserve of the
//! BAR, for `DEVPAGEMAP_STRESS_SECONDS` (3 by default) for each shape of BAR.
//!
//! The peers keep a book of their own: which page of the BAR somebody uses right now. It never has more pages than the hard
//! limit, whatever the library counts.

#[path = "setup/census.rs"]
mod census;
#[path = "setup/jobs.rs"]
mod jobs;
#[path = "setup/numbers.rs"]
mod numbers;
#[path = "setup/pattern.rs"]
mod pattern;
#[path = "setup/stress_time.rs"]
mod stress_time;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use devpagemap::pagemap::Profile;
use devpagemap::{
    Attachment, Bar, BarAddr, BarExtent, Buffer, Device, Error, Fence, Importer, Invalidated, OnPressure,
    P2p, P2pLimits, PeerAddr, PeerExtent, PeerMap, Place, Size, SoftwareGpu, Timeline,
};
use jobs::{fill, verify};
use numbers::Numbers;
use stress_time::stress_time;

type Lab = Device<SoftwareGpu>;

const THREADS: u64 = 16;
const PAGE: u64 = 4096;
const BUFFER_BYTES: u64 = 512 << 10;
const HARD: Size = Size::mib(6);
const RESERVE: Size = Size::mib(2);

/// A thread that gets nothing done for so long is stuck.
const STUCK: Duration = Duration::from_secs(30);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which pages of the BAR somebody uses, by number.
#[derive(Default)]
struct Book(Mutex<HashMap<u64, u32>>);

impl Book {
    fn enter(&self, pages: &[u64]) {
        let mut used = lock(&self.0);
        pages.iter().for_each(|page| *used.entry(*page).or_default() += 1);
        let bytes = used.len() as u64 * PAGE;
        assert!(bytes <= HARD.as_bytes(), "{bytes} bytes of the BAR are in use by peers");
    }

    fn leave(&self, pages: &[u64]) {
        let mut used = lock(&self.0);
        for page in pages {
            let count = used.get_mut(page).expect("who leaves has entered");
            *count -= 1;
            if *count == 0 {
                used.remove(page);
            }
        }
    }
}

/// One peer. What it is told to let go of it uses until it comes round to it.
struct Nic {
    name: String,
    /// One that does not gets copies, or system memory with all others.
    reaches_bar: bool,
    book: Arc<Book>,
    done: Timeline,
    uses: Mutex<Uses>,
}

#[derive(Default)]
struct Uses {
    /// Pages by attachment, a list for each map in use.
    now: HashMap<u64, Vec<(u64, Vec<u64>)>>,
    /// What is over when the fence signals.
    ending: Vec<(Vec<u64>, Fence)>,
    next: u64,
}

impl Importer for Nic {
    fn name(&self) -> &str {
        &self.name
    }

    fn profile(&self) -> Profile {
        match self.reaches_bar {
            true => Profile::dynamic(),
            false => Profile::dynamic().system_only(),
        }
    }

    fn invalidate(&self, what: &Invalidated) -> Option<Fence> {
        let mut uses = lock(&self.uses);
        let pages = uses.now.remove(&what.attachment())?.into_iter().flat_map(|(_, pages)| pages).collect();
        let fence = self.done.next_point();
        uses.ending.push((pages, fence.clone()));
        Some(fence)
    }
}

impl Nic {
    /// Begins to use a map; `None` when that is stale already.
    fn begin(&self, attachment: u64, map: &PeerMap) -> Option<u64> {
        let mut uses = lock(&self.uses);
        if !map.is_current() {
            return None;
        }
        let pages: Vec<u64> = map.extents().iter().flat_map(bar_pages).collect();
        self.book.enter(&pages);
        let number = uses.next;
        uses.next += 1;
        uses.now.entry(attachment).or_default().push((number, pages));
        Some(number)
    }

    /// Ends a use, unless it was told to let go meanwhile.
    fn end(&self, attachment: u64, number: u64) {
        let mut uses = lock(&self.uses);
        let Some(of_attachment) = uses.now.get_mut(&attachment) else { return };
        let Some(at) = of_attachment.iter().position(|(known, _)| *known == number) else { return };
        let (_, pages) = of_attachment.swap_remove(at);
        drop(uses);
        self.book.leave(&pages);
    }

    /// Comes round to what it was told.
    fn let_go(&self) {
        let ending = std::mem::take(&mut lock(&self.uses).ending);
        for (pages, fence) in ending {
            self.book.leave(&pages);
            self.done.signal(fence.seqno());
        }
    }
}

fn bar_pages(extent: &PeerExtent) -> Vec<u64> {
    match extent.addr {
        PeerAddr::Bar(BarAddr(start)) => (start / PAGE..(start + extent.len_bytes) / PAGE).collect(),
        PeerAddr::System(_) | PeerAddr::Vram(_) => Vec::new(),
    }
}

struct Worker<'a> {
    device: &'a Lab,
    buffers: &'a [Buffer],
    nic: Arc<Nic>,
    attachments: Vec<Attachment>,
    /// With their attachment and the number of their use.
    maps: Vec<(u64, PeerMap, Option<u64>)>,
    numbers: Numbers,
    has_windows: bool,
}

impl Worker<'_> {
    fn below(&mut self, limit: u64) -> u64 {
        self.numbers.below(limit as usize) as u64
    }

    fn step(&mut self) {
        match self.below(16) {
            0..=5 => self.map(),
            6..=8 => self.unmap(),
            9 | 10 => self.read(),
            11 => self.tag(),
            12 => self.press(),
            13 => self.check_by_job(),
            14 if self.has_windows => self.pin_a_window(),
            _ => drop(self.device.promote()),
        }
        self.nic.let_go();
    }

    fn map(&mut self) {
        if self.maps.len() >= 6 {
            return self.unmap();
        }
        let at = self.below(self.attachments.len() as u64) as usize;
        let pages = BUFFER_BYTES / PAGE;
        let first = self.below(pages);
        // Small ones among large ones: who keeps a page of a large window keeps all of it.
        let count = if self.below(2) == 0 { 1 } else { 1 + self.below(pages - first) };
        let on_pressure =
            [OnPressure::Demote, OnPressure::FallBack, OnPressure::Refuse][self.below(3) as usize];
        let attachment = &self.attachments[at];
        let request = attachment.request(first * PAGE..(first + count) * PAGE).on_pressure(on_pressure);
        let map = match request.map() {
            Ok(map) => map,
            Err(Error::ApertureFull { .. } | Error::Exhausted { .. } | Error::Pinned { .. }) => return,
            Err(Error::NoPeerAccess { .. }) if !self.nic.reaches_bar => return,
            Err(error) => panic!("{error}"),
        };
        let id = attachment.id();
        // What it waits for may wait for what this very peer was told to let go of.
        while !map.after().is_signaled() && map.is_current() {
            self.nic.let_go();
            thread::yield_now();
        }
        let used = if map.after().is_signaled() { self.nic.begin(id, &map) } else { None };
        self.maps.push((id, map, used));
    }

    fn unmap(&mut self) {
        if self.maps.is_empty() {
            return;
        }
        let at = self.below(self.maps.len() as u64) as usize;
        let (attachment, map, used) = self.maps.swap_remove(at);
        let Some(number) = used else { return drop(map) };
        if self.below(2) == 0 {
            self.nic.end(attachment, number);
            return drop(map);
        }
        // It uses the pages for a while after it has unmapped them.
        let point = {
            let mut uses = lock(&self.nic.uses);
            let Some(of_attachment) = uses.now.get_mut(&attachment) else { return };
            let Some(place) = of_attachment.iter().position(|(known, _)| *known == number) else { return };
            let (_, pages) = of_attachment.swap_remove(place);
            let point = self.nic.done.next_point();
            uses.ending.push((pages, point.clone()));
            point
        };
        map.unmap_after(point);
    }

    /// What it has the use of holds the right bytes.
    fn read(&mut self) {
        for (attachment, map, used) in &self.maps {
            let Some(number) = used else { continue };
            let still = {
                let uses = lock(&self.nic.uses);
                uses.now.get(attachment).is_some_and(|list| list.iter().any(|(known, _)| known == number))
            };
            // Told to let go or not, it is this thread that says when it is done.
            if !still {
                continue;
            }
            let (extent, mut bytes) = (map.extents()[0], [0; 64]);
            let read = match extent.addr {
                PeerAddr::Bar(addr) => self.device.driver().read_bar(addr, &mut bytes),
                PeerAddr::System(addr) => self.device.driver().read_system(addr, &mut bytes),
                PeerAddr::Vram(addr) => self.device.driver().read_vram(addr, &mut bytes),
            };
            read.expect("it has the use of it");
            pattern::check(map.buffer().id(), map.range().start, &bytes).expect("the buffer's bytes");
        }
    }

    fn tag(&mut self) {
        let at = self.below(self.buffers.len() as u64) as usize;
        let p2p = [P2p::Never, P2p::Allowed, P2p::Allowed, P2p::Prefer, P2p::Require][self.below(5) as usize];
        let priority = self.below(4) as usize;
        self.buffers[at].set_p2p(p2p).expect("a slot");
        self.buffers[at].set_priority(priority).expect("a priority");
    }

    /// Evicts others.
    fn press(&mut self) {
        let size = Size::bytes(PAGE * (1 + self.below(1024)));
        let place = if self.below(2) == 0 { Place::VRAM } else { Place::VRAM.visible() };
        let filler = self.device.buffer(size).prefer(place).or(Place::VRAM.fallback()).create();
        match filler.and_then(|filler| filler.place_now()) {
            Ok(()) | Err(Error::Exhausted { .. } | Error::TooLarge { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Brings a buffer where the GPU can use it, and has every byte checked.
    fn check_by_job(&mut self) {
        let at = self.below(self.buffers.len() as u64) as usize;
        let buffer = &self.buffers[at];
        match verify(self.device, buffer, buffer.id()) {
            Ok(job) => {
                let deadline = Instant::now() + STUCK;
                while !job.is_signaled() {
                    // It may wait for what this very peer was told to let go of.
                    self.nic.let_go();
                    assert!(Instant::now() < deadline, "a job is stuck");
                    thread::yield_now();
                }
                job.wait().expect("every byte is right");
            }
            Err(Error::Exhausted { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// The CPU's reserve is there for it: one page for each thread is far less.
    fn pin_a_window(&mut self) {
        let buffer = self.device.buffer(Size::bytes(PAGE)).create().expect("a page");
        match buffer.pin_window(0..PAGE) {
            Ok(window) => drop(window),
            Err(Error::Exhausted { .. }) => {}
            Err(error) => panic!("the CPU does not get its reserve: {error}"),
        }
    }
}

/// The CPU takes all of its reserve again and again, but for the page that each thread may have, and is never refused.
fn take_the_reserve(device: &Lab, bar: Bar, over: &AtomicBool) -> u64 {
    let len_bytes = RESERVE.as_bytes() - THREADS * PAGE;
    let buffer = device.buffer(Size::bytes(len_bytes)).prefer(Place::VRAM).write_combined();
    let buffer = buffer.priority(3).create().expect("a buffer");
    fill(device, &buffer, buffer.id()).expect("room").wait_timeout(STUCK).expect("filled");
    let mut times = 0;
    while !over.load(Ordering::Relaxed) {
        match bar {
            Bar::Windows(_) => {
                let window = buffer.pin_window(0..len_bytes).expect("the reserve is always to be had");
                window.after().wait_timeout(STUCK).expect("former users of the pages end");
                buffer.fences().wait_timeout(STUCK).expect("the bytes arrive");
                check_in_bar(device, &buffer, &window.extents());
            }
            Bar::Prefix(_) => {
                let window = buffer.window(0..len_bytes).expect("the reserve is always to be had");
                assert_eq!(window.bytes(), 0..len_bytes);
            }
        }
        times += 1;
        thread::yield_now();
    }
    times
}

fn check_in_bar(device: &Lab, buffer: &Buffer, extents: &[BarExtent]) {
    let mut offset = 0;
    for extent in extents {
        let mut bytes = vec![0; extent.len_bytes as usize];
        device.driver().read_bar(extent.addr, &mut bytes).expect("a window shows it");
        pattern::check(buffer.id(), offset, &bytes).expect("the buffer's bytes");
        offset += extent.len_bytes;
    }
}

/// Ends the storm however this is left, so that a failure is told and not waited for.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn storm(bar: Bar) {
    let [reopen, soft] = [2, 4].map(Size::mib);
    let limits = P2pLimits { soft, reopen, hard: HARD, cpu_reserve: RESERVE };
    let gpu = SoftwareGpu::builder().rings(4).build().expect("threads for the rings");
    let device = Device::builder(gpu).vram(Size::mib(16)).bar(bar).p2p_limits(limits);
    let device = device.system(Size::mib(256)).gtt(Size::mib(64)).build().expect("a small device");
    let places =
        |at: u64| if at.is_multiple_of(2) { vec![Place::VRAM] } else { vec![Place::VRAM, Place::GTT] };
    let buffers: Vec<Buffer> = (0..24)
        .map(|at| {
            let builder = device.buffer(Size::bytes(BUFFER_BYTES));
            let buffer = places(at).into_iter().fold(builder, |builder, place| builder.or(place)).create();
            let buffer = buffer.expect("a small buffer");
            fill(&device, &buffer, buffer.id()).expect("room");
            buffer
        })
        .collect();
    // A map waits for moves; for the buffers' writers its peer would have to wait itself.
    device.wait_idle();
    let (book, over, steps) = (Arc::new(Book::default()), AtomicBool::new(false), AtomicU64::new(0));
    let reserves = thread::scope(|scope| {
        for number in 0..THREADS {
            let (device, buffers, book, over, steps) = (&device, &buffers, book.clone(), &over, &steps);
            scope.spawn(move || {
                let (name, done) = (format!("nic{number}"), Timeline::new("nic"));
                let reaches_bar = number % 4 != 0;
                let nic = Arc::new(Nic { name, reaches_bar, book, done, uses: Mutex::default() });
                let peer = device.join(nic.clone()).expect("an importer that can be");
                // Elsewhere all agree on the BAR.
                let shared = if reaches_bar { &buffers[..] } else { &buffers[..8] };
                let attachments =
                    shared.iter().map(|buffer| buffer.attach(&peer).expect("one device")).collect();
                let has_windows = matches!(bar, Bar::Windows(_));
                let (maps, numbers) = (Vec::new(), Numbers(number));
                let mut worker = Worker { device, buffers, nic, attachments, maps, numbers, has_windows };
                while !over.load(Ordering::Relaxed) {
                    worker.step();
                    steps.fetch_add(1, Ordering::Relaxed);
                }
                let Worker { nic, maps, attachments, .. } = worker;
                for (attachment, map, used) in maps {
                    used.into_iter().for_each(|number| nic.end(attachment, number));
                    drop(map);
                }
                drop(attachments);
                // Others may still tell it, until all maps of all are gone.
                nic.let_go();
            });
        }
        let reserve = scope.spawn(|| take_the_reserve(&device, bar, &over));
        let _over = Over(&over);
        let end = Instant::now() + stress_time();
        let (mut before, mut since) = (0, Instant::now());
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(200));
            let now = steps.load(Ordering::Relaxed);
            if now > before {
                (before, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < STUCK, "nothing gets on");
        }
        over.store(true, Ordering::Relaxed);
        reserve.join().expect("the CPU always has its reserve")
    });
    device.wait_idle();
    let stats = device.stats();
    assert!(stats.p2p_peak_bytes <= HARD.as_bytes(), "{} bytes", stats.p2p_peak_bytes);
    assert_eq!((stats.p2p_used_bytes, stats.p2p_pending_bytes), (0, 0));
    assert_eq!(stats.cpu_waits_in_validate, 0);
    assert!(lock(&book.0).is_empty());
    println!(
        "{bar:?}: {} steps, the reserve taken {reserves} times, {} maps, {} fallbacks, {} demotions, {} promotions, {} refusals, {} evictions, {} maps of copies",
        steps.load(Ordering::Relaxed),
        stats.peer_maps,
        stats.p2p_fallbacks,
        stats.demotions,
        stats.promotions,
        stats.p2p_refusals,
        stats.evictions,
        stats.staged_maps
    );
    for buffer in &buffers {
        let mut bytes = vec![0; BUFFER_BYTES as usize];
        buffer.read_at(0, &mut bytes).expect("it is whole");
        assert_eq!(pattern::check(buffer.id(), 0, &bytes), Ok(()));
    }
}

#[test]
fn sixteen_peers_never_use_more_of_the_bar_than_they_may_and_always_find_the_right_bytes() {
    for bar in [Bar::Prefix(Size::mib(8)), Bar::Windows(Size::mib(8))] {
        storm(bar);
    }
    let deadline = Instant::now() + STUCK;
    while census::take() != census::Census::default() {
        assert!(Instant::now() < deadline, "left behind: {:?}", census::take());
        thread::sleep(Duration::from_millis(1));
    }
}
