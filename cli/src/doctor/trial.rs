//! What is there is tried: a page goes out through an exporter and is read from the other side, a point of a syncobj is waited for there.

use devpagemap::{Abilities, Device, Result, Size, SoftwareGpu, Via, WhyNot};

/// What came of it.
#[derive(Clone, Debug)]
pub struct Trial {
    /// What the exporter can do.
    pub abilities: Abilities,
    /// Whether what it makes takes fences as descriptors; `None` when the kernel did not say.
    pub sync_files: Option<bool>,
}

/// No memory is so large: an exporter that takes this much has no limit of its own.
pub const UNLIMITED_BYTES: u64 = 1 << 62;
/// One page.
const PAGE: Size = Size::kib(4);
const BYTE: u8 = 0xa5;

impl Trial {
    /// Exports a page through `via`, imports it on a second device, and compares.
    ///
    /// # Errors
    /// What went wrong.
    pub fn of(via: &Via, abilities: Abilities) -> std::result::Result<Trial, WhyNot> {
        match exported_page(via) {
            Ok(sync_files) => Ok(Trial { abilities, sync_files }),
            Err(error) => Err(WhyNot::Refused(Box::new(error))),
        }
    }
}

/// A point of a syncobj that one device signals is waited for by another.
///
/// # Errors
/// What went wrong.
pub fn syncobjs() -> Result<()> {
    let (ours, theirs) = (device()?, device()?);
    let syncobj = ours.create_syncobj()?;
    let same = theirs.import_syncobj(syncobj.export()?)?;
    let awaited = same.fence_at(1)?;
    syncobj.signal(1)?;
    Ok(awaited.wait()?)
}

fn device() -> Result<Device<SoftwareGpu>> {
    Device::builder(SoftwareGpu::builder().build()?).vram(Size::mib(1)).build()
}

fn exported_page(via: &Via) -> Result<Option<bool>> {
    let (ours, theirs) = (device()?, device()?);
    let buffer = ours.buffer(PAGE).name("devpagemap doctor").create()?;
    let page = vec![BYTE; PAGE.as_bytes() as usize];
    buffer.write_at(0, &page)?;
    let export = buffer.export(via.clone())?;
    let sync_files = export.dma_buf().takes_sync_files().ok();
    let foreign = theirs.import(export.dma_buf().try_clone()?).create()?;
    let mut seen = vec![0; page.len()];
    foreign.read_at(0, &mut seen)?;
    match seen == page {
        true => Ok(sync_files),
        false => Err(devpagemap::Error::Unsupported { what: "the other side reads other bytes" }),
    }
}
