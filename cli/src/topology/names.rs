//! Which device somebody means.

use super::devices::{Device, Purpose};
use devpagemap::topology::PciAddress;

/// How many devices a message lists.
const LISTED: usize = 8;
/// No device has a longer name.
const LONGEST: usize = 64;

/// The device that `name` stands for: what the system calls it, its number in the matrix, or its address in full or in part.
///
/// # Errors
/// Why it stands for none, or for several, with what was probably meant.
pub fn find<'a>(devices: &'a [Device], name: &str) -> Result<&'a Device, String> {
    let wanted = name.to_ascii_lowercase();
    let by_system_name = |device: &&Device| device.names.iter().any(|own| own == name);
    let by_number = |device: &&Device| device.short_name().to_ascii_lowercase() == wanted;
    let by_address = |device: &&Device| device.address.is_some_and(|address| is_short_for(&wanted, address));
    let whole: Result<PciAddress, _> = name.parse();
    let by_whole_address = |device: &&Device| whole.is_ok() && device.address == whole.as_ref().ok().copied();
    let ways: [&dyn Fn(&&Device) -> bool; 4] = [&by_system_name, &by_whole_address, &by_number, &by_address];
    for way in ways {
        let found: Vec<&Device> = devices.iter().filter(|device| way(device)).collect();
        match found[..] {
            [] => {}
            [one] => return Ok(one),
            _ => return Err(format!("`{name}` could be {}", listed(&found))),
        }
    }
    Err(match nearest(devices, &wanted) {
        Some(meant) => format!("there is no device `{name}`; did you mean {meant}?"),
        None => {
            let shown: Vec<&Device> =
                devices.iter().filter(|device| device.purpose != Purpose::Other).collect();
            format!("there is no device `{name}`; there are {}", listed(&shown))
        }
    })
}

/// Whether `text` is an address without its domain, without its function, or nothing but its bus.
fn is_short_for(text: &str, address: PciAddress) -> bool {
    let whole = address.to_string();
    let (domain, rest) = whole.split_once(':').unwrap_or(("", &whole));
    let (slot, _) = rest.split_once('.').unwrap_or((rest, ""));
    let (bus, _) = slot.split_once(':').unwrap_or((slot, ""));
    let without_function = format!("{domain}:{slot}");
    [rest, slot, bus, &without_function].contains(&text)
}

fn listed(devices: &[&Device]) -> String {
    let mut names: Vec<String> = devices.iter().take(LISTED).map(|device| told(device)).collect();
    if devices.len() > LISTED {
        names.push(format!("{} others", devices.len() - LISTED));
    }
    match &names[..] {
        [] => "none".to_string(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} or {last}", first.join(", ")),
    }
}

/// `GPU0 (0000:3d:00.0)`.
fn told(device: &Device) -> String {
    let short = device.short_name();
    if short == device.name { short } else { format!("{short} ({})", device.name) }
}

/// The name that differs least from `wanted`, when it differs little.
fn nearest(devices: &[Device], wanted: &str) -> Option<String> {
    let names = devices.iter().flat_map(|device| {
        let numbered = (device.purpose != Purpose::Other).then(|| device.short_name());
        device.names.iter().cloned().chain(numbered).chain([device.name.clone()])
    });
    let near = names.map(|name| (distance(&name.to_ascii_lowercase(), wanted), name));
    // A third of what was typed may be wrong.
    near.filter(|(distance, _)| wanted.len() <= LONGEST && *distance * 3 <= wanted.len())
        .min()
        .map(|(_, name)| name)
}

/// How many letters have to be put in, taken out or replaced.
fn distance(one: &str, two: &str) -> usize {
    let two: Vec<char> = two.chars().take(LONGEST).collect();
    let mut row: Vec<usize> = (0..=two.len()).collect();
    for (line, letter) in one.chars().take(LONGEST).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], line + 1);
        for column in 0..two.len() {
            let replaced = diagonal + usize::from(two[column] != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[two.len()]
}

#[cfg(test)]
mod tests {
    use super::super::devices::all;
    use super::*;
    use devpagemap::topology::Machine;

    fn devices() -> Vec<Device> {
        let xml = br#"<system><cpu numaid="0">
            <pci busid="0000:34:00.0" class="0x030200"><gpu dev="0"/></pci>
            <pci busid="0000:36:00.0" class="0x030200"><gpu dev="1"/></pci>
            <pci busid="0001:36:00.1" class="0x020700"><nic><net name="mlx5_0"/></nic></pci>
            <pci busid="0000:3b:00.0" class="0x010802"/>
            </cpu></system>"#;
        all(&Machine::from_nccl(xml, "n.xml").expect("a good file"))
    }

    fn name(text: &str) -> Result<String, String> {
        find(&devices(), text).map(|device| device.name.clone())
    }

    #[test]
    fn devices_go_by_many_names() {
        for text in ["0000:34:00.0", "34:00.0", "34:00", "34", "GPU0", "gpu0", "0000:34:00"] {
            assert_eq!(name(text), Ok("0000:34:00.0".to_string()), "{text}");
        }
        for text in ["mlx5_0", "NIC0", "0001:36:00.1", "36:00.1"] {
            assert_eq!(name(text), Ok("0001:36:00.1".to_string()), "{text}");
        }
        assert_eq!(name("nvme0"), Ok("0000:3b:00.0".to_string()));
    }

    #[test]
    fn a_name_of_several_devices_is_refused_with_all_of_them() {
        let message = name("36").unwrap_err();
        assert_eq!(message, "`36` could be GPU1 (0000:36:00.0) or NIC0 (0001:36:00.1)");
    }

    #[test]
    fn a_slip_is_answered_with_what_was_meant() {
        assert_eq!(name("mlx5_1").unwrap_err(), "there is no device `mlx5_1`; did you mean mlx5_0?");
        assert_eq!(
            name("0000:35:00.0").unwrap_err(),
            "there is no device `0000:35:00.0`; did you mean 0000:34:00.0?"
        );
        let message = name("the big one").unwrap_err();
        assert!(message.contains("there are GPU0 (0000:34:00.0), GPU1 (0000:36:00.0)"), "{message}");
    }

    #[test]
    fn distances_count_letters() {
        assert_eq!([distance("", "abc"), distance("abc", "abc"), distance("abc", "axcd")], [3, 0, 2]);
    }
}
