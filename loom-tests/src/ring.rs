//! A ring for storms: jobs in order, run by a thread of the model, each behind the fences that its submission told it.

use std::collections::VecDeque;
use std::sync::Arc;

use devpagemap::{Arrivals, Fence, FenceSet, Job, Timeline};
use devpagemap_fence::sync::{Condvar, Mutex};

/// One ring. Its thread is whoever calls [`Ring::serve`].
pub struct Ring {
    /// Signals its jobs. Its own lock.
    timeline: Timeline,
    /// The ring's lock.
    jobs: Mutex<Queued>,
    /// Notified for each job, and at the end.
    wake: Condvar,
}

#[derive(Default)]
struct Queued {
    fifo: VecDeque<QueuedJob>,
    over: bool,
}

struct QueuedJob {
    after: FenceSet,
    needs: Arrivals,
    seqno: u64,
    work: Box<dyn FnOnce() + Send>,
}

impl Ring {
    /// A ring with nothing to do.
    pub fn new(name: &'static str) -> Arc<Ring> {
        let timeline = Timeline::new(name);
        Arc::new(Ring { timeline, jobs: Mutex::new(Queued::default()), wake: Condvar::new() })
    }

    /// Queues `work` behind what the job must wait for.
    pub fn queue(&self, job: &Job<'_>, work: impl FnOnce() + Send + 'static) -> Fence {
        let (after, needs) = (job.after().clone(), job.needs().clone());
        let mut jobs = self.jobs.lock();
        let fence = self.timeline.next_point();
        jobs.fifo.push_back(QueuedJob { after, needs, seqno: fence.seqno(), work: Box::new(work) });
        drop(jobs);
        self.wake.notify_one();
        fence
    }

    /// Runs jobs until [`Ring::stop`], and those that are there by then.
    pub fn serve(&self) {
        while let Some(QueuedJob { after, needs, seqno, work }) = self.next() {
            after.wait().expect("nothing fails in a storm");
            needs.wait().expect("nothing fails in a storm");
            work();
            self.timeline.signal(seqno);
        }
    }

    /// Lets the ring's thread go, once nothing is left to do.
    pub fn stop(&self) {
        self.jobs.lock().over = true;
        self.wake.notify_one();
    }

    fn next(&self) -> Option<QueuedJob> {
        let mut jobs = self.jobs.lock();
        loop {
            if let Some(job) = jobs.fifo.pop_front() {
                return Some(job);
            }
            if jobs.over {
                return None;
            }
            jobs = self.wake.wait(jobs);
        }
    }
}
