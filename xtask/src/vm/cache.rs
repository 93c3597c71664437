//! What is fetched and built once and kept: packages and kernels, in a folder outside of the checkout.
//!
//! `$DEVPAGEMAP_CACHE`, else `$XDG_CACHE_HOME/devpagemap`, else `~/.cache/devpagemap`. An entry's name holds everything that its
//! content depends on, so an entry is never changed. It is made under another name and renamed when it is whole: one
//! that was interrupted is never taken for a whole one. Who makes an entry holds a lock on a file beside it, which goes with
//! its process; a second one waits for it and finds the entry made.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Ends the names of the files with locks.
const LOCK: &str = ".lock";
/// Entries in the making have this in their names, followed by the number of the process that makes them.
const UNFINISHED: &str = ".unfinished-";

/// The folder.
pub struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// The folder that the environment names; made when it is not there.
    ///
    /// # Errors
    /// That no variable names one, or why it cannot be made.
    pub fn open() -> Result<Cache, String> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let dir = set("DEVPAGEMAP_CACHE")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("devpagemap")))
            .or_else(|| Some(set("HOME")?.join(".cache/devpagemap")))
            .ok_or("no folder for kernels: none of DEVPAGEMAP_CACHE, XDG_CACHE_HOME and HOME is set")?;
        Cache::at(dir)
    }

    fn at(dir: PathBuf) -> Result<Cache, String> {
        fs::create_dir_all(&dir).map_err(|error| format!("{} cannot be made: {error}", dir.display()))?;
        let cache = Cache { dir };
        cache.remove_left_behind();
        Ok(cache)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The whole entry of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<PathBuf> {
        Some(self.dir.join(name)).filter(|path| path.exists())
    }

    /// The whole entry of this name; `make` fills a new folder when there is none.
    ///
    /// # Errors
    /// What `make` says, and what the file system says.
    pub fn get_or_make<E: From<String>>(
        &self,
        name: &str,
        make: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, E> {
        if let Some(path) = self.get(name) {
            return Ok(path);
        }
        let _lock = self.lock(name)?;
        // Somebody else may have made it meanwhile.
        if let Some(path) = self.get(name) {
            return Ok(path);
        }
        let unfinished = self.scratch(name)?;
        make(&unfinished.path)?;
        let whole = self.dir.join(name);
        let renamed = fs::rename(&unfinished.path, &whole);
        renamed.map_err(|error| format!("{} cannot be put in its place: {error}", whole.display()))?;
        Ok(whole)
    }

    /// Waits for the right to make an entry.
    fn lock(&self, name: &str) -> Result<File, String> {
        let path = self.dir.join(format!("{name}{LOCK}"));
        let failed = |error| format!("{} cannot be locked: {error}", path.display());
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) => println!("somebody else makes {name}: waiting for it"),
        }
        file.lock().map_err(failed)?;
        Ok(file)
    }

    /// An empty folder of this process's own, gone when the result is dropped.
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn scratch(&self, name: &str) -> Result<Scratch, String> {
        let path = self.dir.join(format!("{name}{UNFINISHED}{}", std::process::id()));
        let failed = |error| format!("{} cannot be made: {error}", path.display());
        remove(&path).and_then(|()| fs::create_dir_all(&path)).map_err(failed)?;
        Ok(Scratch { path })
    }

    /// Whole entries whose names begin like this, by name.
    pub fn entries(&self, beginning: &str) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| name.starts_with(beginning) && is_whole(name)).collect();
        names.sort_by_key(|name| numbers(name));
        names
    }

    /// Removes what processes that are gone were making.
    fn remove_left_behind(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((_, process)) = name.rsplit_once(UNFINISHED) else { continue };
            if !Path::new("/proc").join(process).exists() {
                // Somebody else may be removing it too.
                let _gone_already = remove(&entry.path());
            }
        }
    }
}

fn is_whole(name: &str) -> bool {
    !name.contains(UNFINISHED) && !name.ends_with(LOCK)
}

/// A folder that goes away with this.
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may have become an entry.
        let _renamed = remove(&self.path);
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The numbers in a name, so that 6.12.117 comes after 6.12.99.
pub fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder for one test, removed at its end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Folder {
            Folder(std::env::temp_dir().join(format!("devpagemap-cache-{test}-{}", std::process::id())))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _never_made = remove(&self.0);
        }
    }

    #[test]
    fn an_entry_is_made_once_and_found_afterwards() {
        let folder = Folder::new("once");
        let cache = Cache::at(folder.0.clone()).unwrap();
        let write = |dir: &Path| fs::write(dir.join("image"), "1").map_err(|error| error.to_string());
        let path = cache.get_or_make("kernel-1", write).unwrap();
        assert_eq!(fs::read(path.join("image")).unwrap(), b"1");
        let again = cache.get_or_make("kernel-1", |_| Err::<(), String>("made twice".into())).unwrap();
        assert_eq!(again, path);
    }

    #[test]
    fn an_entry_that_could_not_be_made_leaves_nothing() {
        let folder = Folder::new("failed");
        let cache = Cache::at(folder.0.clone()).unwrap();
        let failed = cache.get_or_make("kernel-1", |dir| {
            fs::write(dir.join("half"), "1").unwrap();
            Err::<(), String>("no network".into())
        });
        assert_eq!(failed.unwrap_err(), "no network");
        assert_eq!(cache.entries("kernel"), Vec::<String>::new());
        assert_eq!(cache.get("kernel-1"), None);
    }

    #[test]
    fn what_an_interrupted_process_left_is_no_entry_and_is_removed() {
        let folder = Folder::new("interrupted");
        // No process has a number this large.
        fs::create_dir_all(folder.0.join("kernel-1.unfinished-99999999")).unwrap();
        let cache = Cache::at(folder.0.clone()).unwrap();
        assert_eq!(cache.entries("kernel"), Vec::<String>::new());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    #[test]
    fn two_who_want_an_entry_make_it_once() {
        let folder = Folder::new("two");
        let cache = Cache::at(folder.0.clone()).unwrap();
        let made = std::sync::atomic::AtomicU32::new(0);
        let both = std::sync::Barrier::new(2);
        let make = |dir: &Path| {
            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            fs::write(dir.join("image"), "1").map_err(|error| error.to_string())
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    both.wait();
                    cache.get_or_make("kernel-1", make).unwrap();
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn entries_are_in_the_order_of_their_numbers() {
        let folder = Folder::new("order");
        let cache = Cache::at(folder.0.clone()).unwrap();
        for name in ["kernel-6.12.117", "kernel-6.12.99", "other"] {
            cache.get_or_make(name, |_| Ok::<(), String>(())).unwrap();
        }
        assert_eq!(cache.entries("kernel"), ["kernel-6.12.99", "kernel-6.12.117"]);
    }
}
