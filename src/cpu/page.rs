//! One page, for as long as a closure runs.

use std::ptr::NonNull;

use devpagemap_allocator::PAGE_BYTES;
use devpagemap_fence::Usage;
use devpagemap_migrate::{MemoryMap, copy};

use super::Caching;
use super::glimpse::Glimpse;
use crate::bo::{Buffer, CpuWish};
use crate::error::{Error, Result};

impl Buffer {
    /// Runs `body` on the bytes of one page (the last page of a buffer may be shorter), after all work that uses the buffer. No address
    /// is kept and no page table changed: for a header here and a counter there.
    ///
    /// The buffer is locked meanwhile: `body` must not use it, nor touch a [`CpuMap`](crate::CpuMap).
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] for a page that it does not have, else as [`Buffer::write_at`].
    ///
    /// ```
    /// # use devpagemap::{Device, Size, SoftwareGpu};
    /// # let device = Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(4)).build()?;
    /// let buffer = device.buffer(Size::bytes(5000)).create()?;
    /// let len = buffer.with_page(1, |bytes| {
    ///     bytes[0] = 7;
    ///     bytes.len()
    /// })?;
    /// assert_eq!(len, 5000 - 4096);
    /// # Ok::<_, devpagemap::Error>(())
    /// ```
    pub fn with_page<O>(&self, page: u64, body: impl FnOnce(&mut [u8]) -> O) -> Result<O> {
        let size_bytes = self.size().as_bytes();
        let offset_bytes = page.saturating_mul(PAGE_BYTES);
        if offset_bytes >= size_bytes {
            return Err(Error::OutOfBounds { offset_bytes, len_bytes: PAGE_BYTES, size_bytes });
        }
        self.0.check_writable()?;
        let len_bytes = PAGE_BYTES.min(size_bytes - offset_bytes);
        let wish = CpuWish { caching: Caching::Uncached, pages: page..page + 1 };
        let mut body = Some(body);
        loop {
            self.transact(|transaction, slot| transaction.make_reachable(slot, &wish).map(drop))?;
            let met = self.when_idle(Usage::Read, |state, held| {
                state.peers.is_written();
                let resource = state.resource.as_ref().expect("a buffer keeps some resource once it has one");
                let extents = resource.extents.slice(offset_bytes, len_bytes);
                let [extent] = extents.as_slice() else { unreachable!("a page is never in two pieces") };
                let mut run = |bytes: NonNull<u8>| {
                    let body = body.take().expect("it runs once");
                    // SAFETY: these are mapped bytes of the device, kept by the manager, or behind a window that is on loan. The
                    // reservation is held and no fence of the buffer is outstanding, so no job and no move uses them until
                    // `body` is done. Other threads of the CPU that write them through a CpuMap's address are told to keep off.
                    let done =
                        body(unsafe { std::slice::from_raw_parts_mut(bytes.as_ptr(), len_bytes as usize) });
                    copy::publish();
                    done
                };
                if let Some(bytes) = self.0.manager.cpu.resolve(extent.addr, extent.len_bytes) {
                    return Ok(Glimpse::Seen(run(bytes)));
                }
                let bytes = offset_bytes..offset_bytes + len_bytes;
                Ok(self.0.manager.glimpse(state, &bytes, held, |pieces| run(pieces[0].memory.start)))
            })?;
            match met {
                Glimpse::Seen(done) => return Ok(done),
                // It has moved again, out of sight.
                Glimpse::Elsewhere => {}
                Glimpse::Queued(window, after) => {
                    // Whether it failed shows when the window is looked through.
                    let _its_programmers_business = self.0.manager.wait(&after);
                    drop(window);
                }
                Glimpse::Refused(refused) => {
                    self.transact(|transaction, slot| {
                        transaction.fall_back(slot, refused.clone()).map(drop)
                    })?;
                }
            }
        }
    }
}
