//! Who lives in a region, least recently used first within each priority.
//!
//! ```text
//!   priority 0   oldest ⇄ … ⇄ newest      evicted first
//!   priority 1   oldest ⇄ … ⇄ newest
//!   …                                     nodes live in one slab; links are slab keys
//! ```
//!
//! A node holds its buffer weakly: a walker that can still upgrade it owns a reference and may try the buffer's
//! reservation; one that cannot has met a buffer whose destructor is about to take the region lock. Pinned buffers
//! keep their node, off the lists. Everything here is under the region lock.

use std::sync::Arc;

use devpagemap_allocator::Span;
use slab::Slab;

use super::{PRIORITIES, RegionKind, total_bytes};
use crate::bo::{BufferObject, WeakBuffer};

/// The node of one resource. Given back when the resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeKey(usize);

/// One pin of one resource, to be undone where it was made. It ends with the resource, too.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pin {
    pub(crate) region: RegionKind,
    pub(crate) node: NodeKey,
    pub(crate) serial: Serial,
}

/// Tells a node from all that ever had its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Serial(u64);

/// What the LRU knows about one resident buffer, so that a walk needs no reservation to choose.
#[derive(Debug)]
pub(crate) struct Node {
    /// Whose resource this is. Constant.
    pub(crate) buffer: WeakBuffer,
    /// The buffer's id. Constant.
    pub(crate) id: u64,
    /// What it occupies; empty in a region that only counts bytes. Constant.
    pub(crate) spans: Vec<Span>,
    /// How much it occupies. Constant.
    pub(crate) len_bytes: u64,
    /// 0 is evicted first. The region lock.
    pub(crate) priority: usize,
    /// Whether the CPU worked on it when it was last touched. The region lock.
    pub(crate) cpu_works_on_it: bool,
    /// How often it is pinned; off the lists while above zero. The region lock.
    pins: u32,
    /// Set when it is inserted, then constant.
    serial: Serial,
    /// The region lock.
    prev: Option<usize>,
    /// The region lock.
    next: Option<usize>,
}

impl Node {
    /// A node of `buffer`, which occupies `spans`; none in a region that only counts bytes.
    pub(crate) fn of(buffer: &Arc<BufferObject>, spans: Vec<Span>) -> Node {
        debug_assert!(spans.is_empty() || total_bytes(&spans) == buffer.footprint_bytes);
        let weak = WeakBuffer::of(buffer);
        Node::new(weak, buffer.id(), spans, buffer.footprint_bytes, buffer.priority())
    }

    fn new(buffer: WeakBuffer, id: u64, spans: Vec<Span>, len_bytes: u64, priority: usize) -> Node {
        let priority = priority.min(PRIORITIES - 1);
        Node {
            buffer,
            id,
            spans,
            len_bytes,
            priority,
            cpu_works_on_it: false,
            pins: 0,
            serial: Serial(0),
            prev: None,
            next: None,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct List {
    head: Option<usize>,
    tail: Option<usize>,
}

/// The LRU lists of one region.
#[derive(Debug, Default)]
pub(crate) struct Lru {
    /// The region lock.
    nodes: Slab<Node>,
    /// The region lock.
    lists: [List; PRIORITIES],
    /// Bytes of pinned nodes. The region lock.
    pinned_bytes: u64,
    /// How many nodes there ever were. The region lock.
    next_serial: u64,
}

impl Lru {
    /// Adds a resource as the most recently used of its priority.
    pub(crate) fn insert(&mut self, node: Node) -> NodeKey {
        let key = self.add(node);
        self.link_last(key);
        NodeKey(key)
    }

    fn add(&mut self, node: Node) -> usize {
        let serial = Serial(self.next_serial);
        self.next_serial += 1;
        self.nodes.insert(Node { serial, ..node })
    }

    /// Adds a resource with the age of `old`, one of the same priority that is not pinned.
    pub(crate) fn insert_beside(&mut self, node: Node, NodeKey(old): NodeKey) -> NodeKey {
        debug_assert_eq!((self.nodes[old].priority, self.nodes[old].pins), (node.priority, 0));
        let key = self.add(node);
        let next = self.nodes[old].next.replace(key);
        self.nodes[key].prev = Some(old);
        self.nodes[key].next = next;
        match next {
            Some(next) => self.nodes[next].prev = Some(key),
            None => self.lists[self.nodes[old].priority].tail = Some(key),
        }
        NodeKey(key)
    }

    /// Takes a resource out; pins end with it.
    pub(crate) fn remove(&mut self, NodeKey(key): NodeKey) -> Node {
        if self.nodes[key].pins == 0 {
            self.unlink(key);
        } else {
            self.pinned_bytes -= self.nodes[key].len_bytes;
        }
        self.nodes.remove(key)
    }

    /// Makes it the most recently used of its priority.
    pub(crate) fn touch(&mut self, NodeKey(key): NodeKey, cpu_works_on_it: bool) {
        self.nodes[key].cpu_works_on_it = cpu_works_on_it;
        if self.nodes[key].pins == 0 {
            self.unlink(key);
            self.link_last(key);
        }
    }

    /// Gives it another priority, as the most recently used of that.
    pub(crate) fn set_priority(&mut self, NodeKey(key): NodeKey, priority: usize) {
        let pinned = self.nodes[key].pins > 0;
        if !pinned {
            self.unlink(key);
        }
        self.nodes[key].priority = priority.min(PRIORITIES - 1);
        if !pinned {
            self.link_last(key);
        }
    }

    /// Keeps it from being evicted until as many [`Lru::unpin`]s.
    pub(crate) fn pin(&mut self, NodeKey(key): NodeKey) -> Serial {
        if self.nodes[key].pins == 0 {
            self.unlink(key);
            self.pinned_bytes += self.nodes[key].len_bytes;
        }
        self.nodes[key].pins += 1;
        self.nodes[key].serial
    }

    /// Undoes one [`Lru::pin`], unless the node has gone with it: whoever takes a device away takes what is pinned too.
    pub(crate) fn unpin(&mut self, NodeKey(key): NodeKey, serial: Serial) {
        let Some(node) = self.nodes.get_mut(key).filter(|node| node.serial == serial) else { return };
        debug_assert!(node.pins > 0, "buffer {} is unpinned more often than pinned", node.id);
        node.pins -= 1;
        if node.pins == 0 {
            self.pinned_bytes -= self.nodes[key].len_bytes;
            self.link_last(key);
        }
    }

    pub(crate) fn is_pinned(&self, NodeKey(key): NodeKey) -> bool {
        self.nodes[key].pins > 0
    }

    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned_bytes
    }

    /// Everything that is not pinned, in the order in which it should go.
    pub(crate) fn in_eviction_order(&self) -> impl Iterator<Item = &Node> {
        self.lists.iter().flat_map(|list| {
            std::iter::successors(list.head, |key| self.nodes[*key].next).map(|key| &self.nodes[key])
        })
    }

    /// Everything, pinned or not.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().map(|(_, node)| node)
    }

    fn link_last(&mut self, key: usize) {
        let list = &mut self.lists[self.nodes[key].priority];
        let tail = list.tail.replace(key);
        match tail {
            Some(tail) => self.nodes[tail].next = Some(key),
            None => list.head = Some(key),
        }
        self.nodes[key].prev = tail;
        self.nodes[key].next = None;
    }

    fn unlink(&mut self, key: usize) {
        let (prev, next, priority) = (self.nodes[key].prev, self.nodes[key].next, self.nodes[key].priority);
        match prev {
            Some(prev) => self.nodes[prev].next = next,
            None => self.lists[priority].head = next,
        }
        match next {
            Some(next) => self.nodes[next].prev = prev,
            None => self.lists[priority].tail = prev,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, priority: usize) -> Node {
        Node::new(WeakBuffer::default(), id, Vec::new(), 4096, priority)
    }

    fn order(lru: &Lru) -> Vec<u64> {
        lru.in_eviction_order().map(|node| node.id).collect()
    }

    #[test]
    fn lower_priorities_go_first_and_within_one_the_least_recently_used() {
        let mut lru = Lru::default();
        let first = lru.insert(node(1, 1));
        lru.insert(node(2, 0));
        lru.insert(node(3, 1));
        assert_eq!(order(&lru), [2, 1, 3]);
        lru.touch(first, false);
        assert_eq!(order(&lru), [2, 3, 1]);
    }

    #[test]
    fn who_takes_anothers_place_is_as_old_as_that_one_was() {
        for (heir_of, wanted) in [(0, [9, 1, 2]), (1, [0, 9, 2]), (2, [0, 1, 9])] {
            let mut lru = Lru::default();
            let keys: Vec<_> = (0..3).map(|id| lru.insert(node(id, 0))).collect();
            let heir = lru.insert_beside(node(9, 0), keys[heir_of]);
            lru.remove(keys[heir_of]);
            assert_eq!(order(&lru), wanted);
            lru.touch(heir, false);
            assert_eq!(order(&lru).last(), Some(&9));
        }
    }

    #[test]
    fn a_pinned_buffer_is_off_the_list_until_the_last_unpin() {
        let mut lru = Lru::default();
        let pinned = lru.insert(node(1, 0));
        lru.insert(node(2, 0));
        let serial = lru.pin(pinned);
        assert_eq!(lru.pin(pinned), serial);
        assert_eq!((order(&lru), lru.pinned_bytes()), (vec![2], 4096));
        lru.unpin(pinned, serial);
        assert_eq!(order(&lru), [2]);
        lru.unpin(pinned, serial);
        assert_eq!((order(&lru), lru.pinned_bytes()), (vec![2, 1], 0));
    }

    #[test]
    fn another_priority_takes_effect_at_once_or_when_the_last_pin_ends() {
        let mut lru = Lru::default();
        let keys: Vec<_> = (0..3).map(|id| lru.insert(node(id, 1))).collect();
        lru.set_priority(keys[0], 3);
        lru.set_priority(keys[2], 0);
        assert_eq!(order(&lru), [2, 1, 0]);
        let serial = lru.pin(keys[1]);
        lru.set_priority(keys[1], 0);
        assert_eq!(order(&lru), [2, 0]);
        lru.unpin(keys[1], serial);
        assert_eq!(order(&lru), [2, 1, 0]);
    }

    #[test]
    fn removal_from_either_end_and_the_middle_keeps_the_rest_in_order() {
        let mut lru = Lru::default();
        let keys: Vec<_> = (0..5).map(|id| lru.insert(node(id, 0))).collect();
        for (gone, left) in [(0, vec![1, 2, 3, 4]), (4, vec![1, 2, 3]), (2, vec![1, 3])] {
            assert_eq!(lru.remove(keys[gone]).id, gone as u64);
            assert_eq!(order(&lru), left);
        }
        lru.pin(keys[1]);
        lru.remove(keys[1]);
        assert_eq!((order(&lru), lru.pinned_bytes()), (vec![3], 0));
    }

    #[test]
    fn a_pin_ends_with_its_node_and_unpins_nobody_who_has_its_key_next() {
        let mut lru = Lru::default();
        let gone = lru.insert(node(1, 0));
        let serial = lru.pin(gone);
        lru.remove(gone);
        lru.unpin(gone, serial);
        let heir = lru.insert(node(2, 0));
        assert_eq!(heir, gone, "keys are reused");
        lru.pin(heir);
        lru.unpin(gone, serial);
        assert_eq!((order(&lru), lru.pinned_bytes()), (vec![], 4096));
    }
}
