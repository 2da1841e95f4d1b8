//! What was made once is kept, by the hash of all that went into it.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::file;
use crate::{ImageError, files};

/// Counts up when this crate makes something else out of the same input.
const RECIPE: &str = "2";
/// Things that are kept; a new agent makes two or three.
const KEPT: usize = 60;
/// What was used so recently may still be in use.
const IN_USE: Duration = Duration::from_secs(2 * 3600);

/// A folder with a sub-folder for each thing.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Below that folder, which is created.
    ///
    /// # Errors
    /// [`ImageError::File`] when it cannot be.
    pub(crate) fn open(folder: &Path) -> Result<Self, ImageError> {
        fs::create_dir_all(folder).map_err(file("create", folder))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The folder of the thing that `inputs` make: as `make` left it, now or before. Another process that wants the
    /// same waits; what was left half done by a crash is not seen.
    ///
    /// # Errors
    /// Those of `make`, and [`ImageError::File`].
    pub(crate) fn get(
        &self,
        inputs: &[&str],
        make: impl FnOnce(&Path) -> Result<(), ImageError>,
    ) -> Result<PathBuf, ImageError> {
        let mut key = String::from(RECIPE);
        for input in inputs {
            key += &format!("\n{}:{input}", input.len());
        }
        let name = files::digest_of(key.as_bytes());
        let place = self.folder.join(&name[..32]);
        let _guard = self.lock(&name[..32])?;
        if !place.is_dir() {
            let temporary = tempfile::Builder::new().prefix(".making-").tempdir_in(&self.folder);
            let temporary = temporary.map_err(file("create a folder in", &self.folder))?;
            make(temporary.path())?;
            fs::rename(temporary.path(), &place).map_err(file("create", &place))?;
            self.prune(KEPT, SystemTime::now() - IN_USE)?;
        }
        // Its time says when it was used last.
        let used = File::open(&place).and_then(|folder| folder.set_modified(SystemTime::now()));
        used.map_err(file("touch", &place))?;
        Ok(place)
    }

    /// Removes what was not used since `before`, the oldest first, until `kept` things are left.
    fn prune(&self, kept: usize, before: SystemTime) -> Result<(), ImageError> {
        let entries = fs::read_dir(&self.folder).map_err(file("read", &self.folder))?.flatten();
        let is_thing = |name: &str| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
        let mut things: Vec<(SystemTime, PathBuf)> = entries
            .filter(|entry| entry.file_name().to_str().is_some_and(is_thing))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .collect();
        things.sort();
        let surplus = things.len().saturating_sub(kept);
        for (_, path) in things.into_iter().take(surplus).filter(|(used, _)| *used < before) {
            fs::remove_dir_all(&path).map_err(file("remove", &path))?;
            let _ = fs::remove_file(path.with_extension("lock"));
        }
        Ok(())
    }

    /// Keeps others off `name` until the guard is dropped.
    ///
    /// # Errors
    /// [`ImageError::File`] when the lock file cannot be used.
    pub(crate) fn lock(&self, name: &str) -> Result<File, ImageError> {
        let path = self.folder.join(format!("{name}.lock"));
        let lock = OpenOptions::new().create(true).append(true).open(&path).map_err(file("open", &path))?;
        lock.lock().map_err(file("lock", &path))?;
        Ok(lock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_input_is_made_once_and_another_apart() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let made = std::cell::Cell::new(0);
        let get = |inputs: &[&str]| {
            cache
                .get(inputs, |place| {
                    made.set(made.get() + 1);
                    fs::write(place.join("x"), inputs.concat()).map_err(file("write", place))
                })
                .unwrap()
        };
        assert_eq!(get(&["a", "bc"]), get(&["a", "bc"]));
        assert_eq!(made.get(), 1);
        assert_ne!(get(&["a", "bc"]), get(&["ab", "c"]));
        assert_eq!(made.get(), 2);
        assert_eq!(fs::read_to_string(get(&["ab", "c"]).join("x")).unwrap(), "abc");
    }

    #[test]
    fn what_is_too_much_goes_oldest_first_unless_it_may_be_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let old = SystemTime::now() - 10 * IN_USE;
        let mut places = Vec::new();
        for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
            let place = cache.get(&[name], |_| Ok(())).unwrap();
            let used = old + u32::try_from(n).unwrap() * Duration::from_secs(1);
            File::open(&place).unwrap().set_modified(used).unwrap();
            places.push(place);
        }
        let there = || places.iter().map(|place| place.exists()).collect::<Vec<_>>();
        cache.prune(0, old).unwrap();
        assert_eq!(there(), [true; 3]);
        cache.prune(2, SystemTime::now()).unwrap();
        assert_eq!(there(), [false, true, true]);
    }

    #[test]
    fn what_failed_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        assert!(cache.get(&["a"], |_| Err(ImageError::Recipe("no".into()))).is_err());
        assert!(cache.get(&["a"], |_| Ok(())).is_ok());
    }
}
