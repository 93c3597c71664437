//! How many bytes of other people's dma-bufs a client has mapped, and may.

use std::sync::Arc;

use devpagemap_fence::Outside;

use crate::error::{Error, Result};

/// One client's imports. Its own lock, outside of the order, held for a sum.
#[derive(Debug)]
pub(crate) struct ImportBudget(Outside<Usage>);

#[derive(Debug)]
struct Usage {
    used_bytes: u64,
    limit_bytes: u64,
}

impl ImportBudget {
    /// Without a limit.
    pub(crate) fn new() -> Arc<ImportBudget> {
        Arc::new(ImportBudget(Outside::new("import budget", Usage { used_bytes: 0, limit_bytes: u64::MAX })))
    }

    /// What is charged beyond it stays, but there is no more.
    pub(crate) fn set_limit(&self, limit_bytes: u64) {
        self.0.lock().limit_bytes = limit_bytes;
    }

    pub(crate) fn used_bytes(&self) -> u64 {
        self.0.lock().used_bytes
    }

    /// Counts `len_bytes` until the charge is dropped.
    ///
    /// # Errors
    /// [`Error::ImportLimit`].
    pub(crate) fn charge(self: &Arc<Self>, len_bytes: u64) -> Result<ImportCharge> {
        let mut usage = self.0.lock();
        let Usage { used_bytes, limit_bytes } = *usage;
        match used_bytes.checked_add(len_bytes) {
            Some(sum) if sum <= limit_bytes => usage.used_bytes = sum,
            _ => return Err(Error::ImportLimit { limit_bytes, used_bytes, wanted_bytes: len_bytes }),
        }
        Ok(ImportCharge { budget: self.clone(), len_bytes })
    }
}

/// Bytes that count as imported until this is dropped.
#[derive(Debug)]
pub(crate) struct ImportCharge {
    /// Constant.
    budget: Arc<ImportBudget>,
    /// Constant.
    len_bytes: u64,
}

impl Drop for ImportCharge {
    fn drop(&mut self) {
        self.budget.0.lock().used_bytes -= self.len_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_exceeds_the_limit_is_refused_with_its_operands_and_changes_nothing() {
        let budget = ImportBudget::new();
        let first = budget.charge(3 << 12).expect("there is no limit");
        budget.set_limit(4 << 12);
        let refused = budget.charge(2 << 12).expect_err("one page is left");
        let (limit_bytes, used_bytes, wanted_bytes) = (4 << 12, 3 << 12, 2 << 12);
        assert_eq!(refused, Error::ImportLimit { limit_bytes, used_bytes, wanted_bytes });
        assert_eq!(budget.used_bytes(), used_bytes);
        drop(first);
        let _second = budget.charge(wanted_bytes).expect("four pages are left");
        budget.charge(u64::MAX).expect_err("a sum that overflows is beyond every limit");
    }

    #[test]
    fn a_limit_below_what_is_used_takes_nothing_away() {
        let budget = ImportBudget::new();
        let charge = budget.charge(8192).expect("there is no limit");
        budget.set_limit(4096);
        assert_eq!(budget.used_bytes(), 8192);
        drop(charge);
        assert_eq!(budget.used_bytes(), 0);
    }
}
