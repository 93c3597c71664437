//! A table whose next version shares almost everything with this one.
//!
//! ```text
//!   version 7   ├─ chunk ─┼─ chunk ─┼─ chunk ─┤        64 rows a chunk
//!                   │         │         ✕
//!   version 8   ├─ ─┘ ─ ──┼─ ─┘ ────┼─ chunk' ┤        one row is different
//! ```

use devpagemap_fence::sync::Arc;

const ROWS: usize = 64;

type Chunk<R> = [Option<Arc<R>>; ROWS];

/// Rows by slot.
#[derive(Debug)]
pub(super) struct Table<R> {
    chunks: Vec<Arc<Chunk<R>>>,
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Table<R> {
        Table { chunks: self.chunks.clone() }
    }
}

impl<R> Default for Table<R> {
    fn default() -> Table<R> {
        Table { chunks: Vec::new() }
    }
}

impl<R> Table<R> {
    /// The row in a slot.
    #[inline]
    pub fn get(&self, slot: usize) -> Option<&Arc<R>> {
        self.chunks.get(slot / ROWS)?[slot % ROWS].as_ref()
    }

    /// Puts a row into a slot, or takes it out.
    pub fn set(&mut self, slot: usize, row: Option<Arc<R>>) {
        let chunk = slot / ROWS;
        while self.chunks.len() <= chunk {
            self.chunks.push(Arc::new([const { None }; ROWS]));
        }
        let mut rows = Chunk::<R>::clone(&self.chunks[chunk]);
        rows[slot % ROWS] = row;
        self.chunks[chunk] = Arc::new(rows);
    }

    /// One more than the last slot that there is room for.
    pub fn len(&self) -> usize {
        self.chunks.len() * ROWS
    }

    /// All rows, by slot.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &Arc<R>)> {
        let rows = self.chunks.iter().flat_map(|chunk| chunk.iter()).enumerate();
        rows.filter_map(|(slot, row)| Some((slot, row.as_ref()?)))
    }

    /// The same table with other rows.
    pub fn map(&self, mut change: impl FnMut(&Arc<R>) -> Arc<R>) -> Table<R> {
        let chunk =
            |chunk: &Arc<Chunk<R>>| Arc::new(std::array::from_fn(|row| chunk[row].as_ref().map(&mut change)));
        Table { chunks: self.chunks.iter().map(chunk).collect() }
    }
}
