//! The built-in workload: a dozen frames of a game, made up, in the shape of the published figures of real ones.
//!
//! ```text
//!   842 buffers, 743 MiB:   249 that batches use (437 MiB), 593 that wait for a later part of the game
//!   101 batches:            5 that load the level, then 12 frames of 8
//!
//!   context 1   shadows ─ geometry ─ lighting ─ particles ─ tonemap      context 2   culling ─ interface ─ present
//!               (64..96)   (up to 332 MiB)                                            each frame
//! ```
//!
//! The geometry pass of a frame uses the textures of what the camera sees: a window that slides over all textures,
//! so that a frame uses most of what the frame before used. No frame fits in 384 MiB together with what
//! the next one adds, so something must leave in every frame.

use super::builder::TraceBuilder;
use super::model::{Access, After, Batch, Bo, BoId, FirstBytes, PAGE_BYTES, Step, Trace, Use, merged_uses};
use crate::replay::pattern::Random;
use std::ops::Range;

/// The name of the format.
pub const FORMAT: &str = "frames";
/// How many frames there are.
const FRAMES: u32 = 12;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What a group of buffers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Swapchain,
    Geometry,
    Shadow,
    Post,
    Texture,
    Mesh,
    Uniform,
    Resident,
}

/// Groups of equal buffers: role, how many, how large. 249 buffers and 437 MiB without the resident ones.
const GROUPS: [(Role, u32, u64); 16] = [
    (Role::Swapchain, 3, 8 * MIB),
    (Role::Geometry, 5, 10 * MIB),
    (Role::Shadow, 2, 16 * MIB),
    (Role::Post, 6, 4 * MIB),
    (Role::Texture, 24, 6 * MIB),
    (Role::Texture, 40, 2 * MIB),
    (Role::Texture, 30, MIB),
    (Role::Mesh, 40, 768 * KIB),
    (Role::Mesh, 20, MIB),
    (Role::Uniform, 64, 32 * KIB),
    (Role::Uniform, 11, 64 * KIB),
    (Role::Uniform, 4, 80 * KIB),
    (Role::Resident, 93, 2 * MIB),
    (Role::Resident, 100, MIB),
    (Role::Resident, 320, 32 * KIB),
    (Role::Resident, 80, 128 * KIB),
];

/// The buffers of every role, in creation order.
struct Scene {
    swapchain: Vec<BoId>,
    geometry: Vec<BoId>,
    shadow: Vec<BoId>,
    post: Vec<BoId>,
    textures: Vec<BoId>,
    meshes: Vec<BoId>,
    uniforms: Vec<BoId>,
    sizes: Vec<u64>,
}

/// Makes the workload. The seed varies sizes and the order of textures, not the totals.
pub fn generate(seed: u64) -> Result<Trace, String> {
    let mut random = Random::new(seed ^ 0x6672_616d_6573);
    let mut builder = TraceBuilder::new("builtin:frames", FORMAT);
    let scene = create(&mut builder, &mut random)?;
    let mut script = Script { builder, scene };
    script.load()?;
    for frame in 0..FRAMES {
        script.frame(frame)?;
    }
    let mut builder = script.builder;
    let buffers = u64::from(builder.next_bo().0);
    builder.events = 2 * buffers + u64::from(builder.next_batch());
    builder.finish()
}

fn create(builder: &mut TraceBuilder, random: &mut Random) -> Result<Scene, String> {
    let mut scene = Scene {
        swapchain: Vec::new(),
        geometry: Vec::new(),
        shadow: Vec::new(),
        post: Vec::new(),
        textures: Vec::new(),
        meshes: Vec::new(),
        uniforms: Vec::new(),
        sizes: Vec::new(),
    };
    let mut resident = Vec::new();
    for (role, count, bytes) in GROUPS {
        let list = match role {
            Role::Swapchain => &mut scene.swapchain,
            Role::Geometry => &mut scene.geometry,
            Role::Shadow => &mut scene.shadow,
            Role::Post => &mut scene.post,
            Role::Texture => &mut scene.textures,
            Role::Mesh => &mut scene.meshes,
            Role::Uniform => &mut scene.uniforms,
            Role::Resident => &mut resident,
        };
        for size_bytes in varied(role, count, bytes, random) {
            let id = builder.next_bo();
            let name = format!("{}-{}", format!("{role:?}").to_lowercase(), list.len());
            let (heaps, first_bytes) = (Vec::new(), FirstBytes::Uploaded);
            let bo = Bo { id, name, size_bytes, heaps, placed_at_creation: false, first_bytes, line: 0 };
            builder.push(Step::Create(bo))?;
            scene.sizes.push(size_bytes);
            list.push(id);
        }
    }
    shuffle(&mut scene.textures, random);
    shuffle(&mut scene.meshes, random);
    Ok(scene)
}

/// Sizes of one group: what one buffer gives up, its neighbour gets. Targets of rendering are all alike.
fn varied(role: Role, count: u32, bytes: u64, random: &mut Random) -> Vec<u64> {
    let mut sizes = vec![bytes; count as usize];
    if matches!(role, Role::Texture | Role::Mesh | Role::Resident) {
        for pair in sizes.chunks_exact_mut(2) {
            let pages = random.within(&(0..=bytes / PAGE_BYTES / 4));
            pair[0] -= pages * PAGE_BYTES;
            pair[1] += pages * PAGE_BYTES;
        }
    }
    sizes
}

fn shuffle(list: &mut [BoId], random: &mut Random) {
    for end in (1..list.len()).rev() {
        list.swap(end, random.within(&(0..=end as u64)) as usize);
    }
}

/// `count` neighbours in a ring, from `first` on.
fn ring(list: &[BoId], first: usize, count: usize) -> impl Iterator<Item = BoId> {
    (0..count.min(list.len())).map(move |index| list[(first + index) % list.len()])
}

struct Script {
    builder: TraceBuilder,
    scene: Scene,
}

impl Script {
    fn batch(
        &mut self,
        context: u32,
        duration_us: u64,
        after: Option<u32>,
        reads: impl IntoIterator<Item = BoId>,
        writes: impl IntoIterator<Item = BoId>,
    ) -> Result<u32, String> {
        let index = self.builder.next_batch();
        let reads = reads.into_iter().map(|bo| Use { bo, access: Access::Read });
        let writes = writes.into_iter().map(|bo| Use { bo, access: Access::Write });
        let uses = merged_uses(reads.chain(writes));
        let after = after.map(After::Batch).into_iter().collect();
        let engine = if context == 1 { "gfx" } else { "compute" }.to_string();
        let duration_us = Some(duration_us);
        self.builder.push(Step::Batch(Batch {
            index,
            context,
            engine,
            uses,
            after,
            duration_us,
            line: 0,
        }))?;
        Ok(index)
    }

    /// Five batches that decode a fifth of all textures and meshes each.
    fn load(&mut self) -> Result<(), String> {
        for part in 0..5 {
            let share = |list: &[BoId]| list.iter().copied().skip(part).step_by(5).collect::<Vec<_>>();
            let (textures, meshes) = (share(&self.scene.textures), share(&self.scene.meshes));
            let uniforms = share(&self.scene.uniforms);
            self.batch(1, 4_000, None, uniforms, textures.into_iter().chain(meshes))?;
        }
        Ok(())
    }

    /// What the geometry pass of a frame reads besides its targets: a window over the textures that fills up to the
    /// frame's budget, the widest in the middle of the scene.
    fn visible_textures(&self, frame: u32, used_bytes: u64) -> Vec<BoId> {
        let textures = &self.scene.textures;
        let first = frame as usize * textures.len() / 2 / FRAMES as usize;
        let budget = (332 - 3 * u64::from(frame.abs_diff(FRAMES / 2))) * MIB;
        let mut bytes = used_bytes;
        let fits = |bo: &BoId| {
            let with = bytes + self.scene.sizes[bo.index()];
            let fits = with <= budget;
            if fits {
                bytes = with;
            }
            fits
        };
        ring(textures, first, textures.len()).filter(fits).collect()
    }

    fn frame(&mut self, frame: u32) -> Result<(), String> {
        let at = frame as usize;
        let pick = |list: &[BoId], range: Range<usize>| list[range].to_vec();
        let shadow = self.scene.shadow.clone();
        let geometry = self.scene.geometry.clone();
        let post = self.scene.post.clone();
        let back_buffer = [self.scene.swapchain[at % 3]];
        let meshes: Vec<_> = ring(&self.scene.meshes, at * 3, 48).collect();
        let uniforms: Vec<_> = ring(&self.scene.uniforms, at * 6, 24).collect();
        let fixed =
            geometry.iter().chain(&meshes).chain(&uniforms).map(|bo| self.scene.sizes[bo.index()]).sum();
        let textures = self.visible_textures(frame, fixed);
        let interface: Vec<_> = ring(&self.scene.textures, at, 6).collect();

        let culled = self.batch(2, 900, None, meshes.clone(), pick(&uniforms, 0..4))?;
        self.batch(1, 1_800, Some(culled), meshes.iter().chain(&uniforms).copied(), shadow.clone())?;
        let reads = meshes.iter().chain(&textures).chain(&uniforms).copied();
        self.batch(1, 5_200, None, reads, geometry.clone())?;
        let reads = geometry.iter().chain(&shadow).chain(&uniforms[..8]).copied();
        let lit = self.batch(1, 3_100, None, reads, pick(&post, 0..2))?;
        let reads = pick(&textures, 0..textures.len().min(12)).into_iter().chain(pick(&geometry, 4..5));
        self.batch(1, 1_400, None, reads, pick(&post, 0..1))?;
        let drawn = self.batch(2, 700, Some(lit), interface, pick(&post, 5..6))?;
        let toned = self.batch(1, 1_100, Some(drawn), pick(&post, 0..2), pick(&post, 2..5))?;
        let reads = pick(&post, 2..6);
        let shown = self.batch(2, 500, Some(toned), reads, back_buffer)?;
        if frame % 3 == 2 {
            self.builder.push(Step::Wait { batch: shown })?;
        }
        self.builder.push(Step::Period { us: 20_000 + u64::from(frame + 1) * 16_667 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn batches(trace: &Trace) -> Vec<HashSet<BoId>> {
        let uses = |step: &Step| match step {
            Step::Batch(batch) => Some(batch.uses.iter().map(|one| one.bo).collect()),
            _ => None,
        };
        trace.steps.iter().filter_map(uses).collect()
    }

    #[test]
    fn the_figures_are_those_of_real_frames() {
        for seed in [1, 2, 77, u64::MAX] {
            let trace = generate(seed).unwrap();
            assert_eq!((trace.bos, trace.batches), (842, 101));
            assert!(trace.peak_live_bytes.abs_diff(743 * MIB) <= MIB, "{}", trace.peak_live_bytes);
            assert!(
                (328 * MIB..=332 * MIB).contains(&trace.largest_batch_bytes),
                "{}",
                trace.largest_batch_bytes
            );
            assert_eq!(trace.referenced_bos, 249);
            assert_eq!(trace.referenced_bytes, 437 * MIB);
        }
    }

    #[test]
    fn a_frame_uses_most_of_what_the_frame_before_used() {
        let batches = batches(&generate(1).unwrap());
        let frames: Vec<HashSet<BoId>> =
            batches[5..].chunks(8).map(|frame| frame.iter().flatten().copied().collect()).collect();
        assert_eq!(frames.len(), FRAMES as usize);
        for pair in frames.windows(2) {
            let common = pair[0].intersection(&pair[1]).count();
            assert!(common * 10 >= pair[1].len() * 7, "{common} of {}", pair[1].len());
            assert_ne!(pair[0], pair[1]);
        }
    }

    #[test]
    fn the_seed_decides_everything() {
        assert_eq!(generate(5), generate(5));
        assert_ne!(generate(5).unwrap().steps, generate(6).unwrap().steps);
    }
}
