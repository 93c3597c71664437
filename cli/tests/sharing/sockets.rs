//! What may be at the path of a socket.

use crate::command::{refusal, socket_path};
use devpagemap_cli::handover::{Interrupt, Listener, Peer};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;

fn bound(path: &Path) -> String {
    match Listener::bind(path) {
        Ok(_) => panic!("{} was free", path.display()),
        Err(error) => error.to_string(),
    }
}

fn connected(path: &Path) -> String {
    match Peer::connect(path) {
        Ok(_) => panic!("somebody listens at {}", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_socket_is_this_users_alone_and_goes_with_its_listener() {
    let path = socket_path("mode");
    let listener = Listener::bind(&path).expect("nothing is in the way");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let peer = Peer::connect(&path).expect("it listens");
    let met = listener.accept(&Interrupt::never().unwrap()).unwrap().expect("it connected");
    let own = i32::try_from(std::process::id()).ok();
    assert_eq!((peer.process(), met.process()), (own, own));
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_file_in_the_way_is_left_alone() {
    let path = socket_path("file");
    std::fs::write(&path, "precious").unwrap();
    assert!(bound(&path).ends_with("it exists and is no socket; choose another path"));
    assert!(connected(&path).ends_with("it is no socket"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_left_over_is_replaced_and_an_exporter_is_not() {
    let path = socket_path("left-over");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "a socket's file stays when its socket goes");
    assert!(connected(&path).ends_with("nobody exports there any more: the socket is a left-over"));
    let listener = Listener::bind(&path).expect("the left-over is replaced");
    assert!(bound(&path).ends_with("somebody exports there already"));
    Peer::connect(&path).expect("the first one still listens");
    drop(listener);
}

#[test]
fn a_socket_of_another_program_is_left_alone() {
    let path = socket_path("other");
    let other = UnixListener::bind(&path).unwrap();
    let inode = std::fs::metadata(&path).unwrap().ino();
    assert!(bound(&path).ends_with("it is a socket of another program"));
    assert!(connected(&path).ends_with("it is a socket of another program"));
    assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
    drop(other);
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_socket_that_was_replaced_by_another_is_not_taken_away() {
    let path = socket_path("replaced");
    let first = Listener::bind(&path).expect("nothing is in the way");
    std::fs::remove_file(&path).unwrap();
    let second = Listener::bind(&path).expect("nothing is in the way any more");
    drop(first);
    Peer::connect(&path).expect("the second is still there");
    drop(second);
    assert!(!path.exists());
}

#[test]
fn paths_that_no_socket_can_have_are_refused_by_what_is_wrong() {
    let long = format!("/tmp/{}", "x".repeat(120));
    assert!(bound(Path::new(&long)).ends_with("the path of a socket has at most 107 bytes"));
    assert!(bound(Path::new("/no such folder/s")).ends_with("there is no such folder"));
    assert!(bound(Path::new("/proc/self/exe/s")).ends_with("the folder is no folder"));
    let nowhere = socket_path("nowhere");
    assert!(connected(&nowhere).ends_with("nobody exports there: there is no such file"));
    let message = refusal(&["import", "--socket", nowhere.to_str().unwrap()]);
    let expected =
        format!("devpagemap: --socket {}: nobody exports there: there is no such file", nowhere.display());
    assert_eq!(message, expected);
}
