//! What `devpagemap doctor` says where there is something to be found.

use std::process::Stdio;

use crate::setup::{Thing, need};
use crate::two_processes::command;

/// The lines below a title of the table.
fn section<'a>(table: &'a str, title: &str) -> Vec<&'a str> {
    let after = table.lines().skip_while(|line| line.trim() != title).skip(1);
    after.take_while(|line| !line.trim().is_empty()).map(str::trim).collect()
}

#[test]
fn what_the_machine_has_works_when_it_is_tried_and_is_told_so() {
    let all = [Thing::Udmabuf, Thing::DmaHeap, Thing::Vgem, Thing::VirtioGpu, Thing::Ivshmem];
    let Some(mut command) = command().filter(|_| need(&all)) else { return };
    let output = command.arg("doctor").stdin(Stdio::null()).output().expect("it starts");
    let table = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{table}{}", String::from_utf8_lossy(&output.stderr));
    for way in ["udmabuf", "dma-heap", "vgem", "virtio-gpu"] {
        let works = |line: &&str| line.starts_with("yes") && line.contains(way);
        assert!(section(&table, "buffers as dma-bufs").iter().any(works), "{way} works:\n{table}");
    }
    let nodes = section(&table, "DRM nodes");
    for driver in ["vgem, primary", "virtio_gpu, primary", "bochs-drm, primary", "qxl, primary"] {
        assert!(nodes.iter().any(|line| line.contains(driver)), "{driver}:\n{table}");
    }
    let fences = section(&table, "fences in the kernel");
    assert!(fences[0].starts_with("yes  sync_file"), "{table}");
    assert!(fences[1].starts_with("yes  vgem"), "{table}");
    assert!(fences.iter().any(|line| line.starts_with("yes  syncobj")), "{table}");
    let bars = section(&table, "BARs that could be video memory");
    let shared = |line: &&str| line.contains("512 MiB") && line.contains("nobody has it");
    assert!(bars.iter().any(shared), "{table}");
    let taken = |line: &&str| line.contains("the driver ") && line.starts_with("no");
    assert!(bars.iter().any(taken), "a screen's BAR is its driver's:\n{table}");
}
