//! The thread that fetches and writes images, and what it tells the loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use otandem_core::image::{Checkpoint, Image};
use otandem_core::machine::{Event, WrittenImage};
use otandem_core::update::{JobKey, Outcome};
use otandem_device::install::{
    self, Class, Fetch, FetchError, FileFetch, Observer, Opened, Plan, Progress, Stopped,
};
use otandem_device::jobs::Finish;
use otandem_device::memory;
use tokio::sync::mpsc;

use crate::fetch::{HttpConfig, HttpSource, Refresh};

/// Progress goes to the loop at most this often.
const TELL_EVERY: Duration = Duration::from_millis(250);
/// How often a thread that waits looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What threads tell the loop.
#[derive(Debug)]
pub enum Work {
    /// Straight to the update machine.
    Event(Box<Event>),
    /// To be saved; the thread waits for the reply.
    Checkpoint(Checkpoint, blocking::Sender<()>),
    /// The download needs a fresh URL.
    Renew(Renewal),
    /// What a person asked for cannot be done.
    Refused(String),
    /// This step of the general job is next; the thread waits for the reply.
    JobStep(usize, String, blocking::Sender<()>),
    /// The steps of this job are over.
    JobOver(JobKey, Finish),
    /// A program of a feature ended.
    Program(String, Result<(), String>),
}

/// A download that waits for a fresh URL.
#[derive(Debug)]
pub struct Renewal {
    /// For the image of this slot.
    pub slot: String,
    reply: blocking::Sender<Refresh>,
}

impl Renewal {
    /// Here it is.
    pub fn answer(self, url: String) {
        let _ = self.reply.send(Refresh::NewUrl(url));
    }

    /// There is none.
    pub fn refuse(self, why: &str) {
        let _ = self.reply.send(Refresh::Gone(why.to_owned()));
    }
}

/// What an installation needs besides its images: fixed by the configuration.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Slots of the target set.
    pub targets: std::collections::BTreeMap<String, PathBuf>,
    /// Those of them that are files written where they lie.
    pub in_place: std::collections::BTreeSet<String>,
    /// Slots of the running set.
    pub forbidden: Vec<PathBuf>,
    /// The slot whose head comes last.
    pub boots_first: Option<String>,
    /// Where heads wait.
    pub state_dir: PathBuf,
    /// Bounds.
    pub limits: install::Limits,
    /// Reading back.
    pub read_back: install::ReadBack,
    /// Other disks.
    pub other_disk: install::OtherDisk,
    /// A person said that no digest is needed.
    pub no_digest: install::NoDigest,
    /// For downloads; an error where the network is not usable.
    pub http: Result<HttpConfig, String>,
}

/// An installation under way.
pub struct Worker {
    stop: Arc<AtomicBool>,
    go: blocking::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Worker {
    /// Starts the thread. It opens the images and waits for [`Worker::write`].
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(
        terms: Terms,
        images: Vec<Image>,
        resume: Option<Checkpoint>,
        tell: mpsc::UnboundedSender<Work>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (go, wait) = blocking::channel();
        let flag = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("install".into()).spawn(move || {
            memory::give_back();
            let event = run(&terms, &images, resume.as_ref(), &tell, wait, &flag);
            if let Some(event) = event.filter(|_| !flag.load(Ordering::Relaxed)) {
                let _ = tell.send(Work::Event(Box::new(event)));
            }
        })?;
        Ok(Self { stop, go, thread })
    }

    /// Everything is ready: begin to write.
    pub fn write(&self) {
        let _ = self.go.send(());
    }

    /// Ends it and waits until no descriptor of a slot is open any more.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.go);
        let _ = self.thread.join();
    }
}

fn run(
    terms: &Terms,
    images: &[Image],
    resume: Option<&Checkpoint>,
    tell: &mpsc::UnboundedSender<Work>,
    wait: blocking::Receiver<()>,
    stop: &Arc<AtomicBool>,
) -> Option<Event> {
    let plan = Plan {
        images,
        targets: &terms.targets,
        in_place: &terms.in_place,
        boots_first: terms.boots_first.as_deref(),
        state_dir: &terms.state_dir,
        resume,
        limits: terms.limits.clone(),
        read_back: terms.read_back,
        other_disk: terms.other_disk,
        no_digest: terms.no_digest,
        forbidden: &terms.forbidden,
    };
    let mut source =
        Source { http: terms.http.clone(), opened: None, tell: tell.clone(), stop: Arc::clone(stop) };
    let mut observer = Teller { tell: tell.clone(), wait, told: None, stop: Arc::clone(stop) };
    match install::install(&plan, &mut source, &mut observer, stop) {
        Ok(written) => Some(Event::Written(
            written
                .into_iter()
                .map(|w| WrittenImage {
                    sha256: w.sha256,
                    size: w.size,
                    file_sha256: w.file_sha256,
                    md5: w.md5,
                })
                .collect(),
        )),
        Err(e) => match e.class() {
            Class::Stopped => None,
            Class::Failed => Some(Event::FetchEnded(Outcome::failed(e.to_string()))),
            Class::Rejected => Some(Event::FetchEnded(Outcome::rejected(e.to_string()))),
        },
    }
}

/// Files by path, everything else over HTTP.
struct Source {
    http: Result<HttpConfig, String>,
    opened: Option<HttpSource>,
    tell: mpsc::UnboundedSender<Work>,
    stop: Arc<AtomicBool>,
}

impl Source {
    fn http(&mut self) -> Result<&mut HttpSource, FetchError> {
        if self.opened.is_none() {
            let config = self.http.clone().map_err(|reason| FetchError::Failed { reason })?;
            let (tell, stop) = (self.tell.clone(), Arc::clone(&self.stop));
            let renew = Box::new(move |slot: &str| renew(slot, &tell, &stop));
            self.opened = Some(HttpSource::new(config, Arc::clone(&self.stop), renew)?);
        }
        self.opened.as_mut().ok_or(FetchError::Stopped)
    }
}

/// Asks the loop, which asks the cloud.
fn renew(slot: &str, tell: &mpsc::UnboundedSender<Work>, stop: &AtomicBool) -> Refresh {
    let (reply, answer) = blocking::channel();
    if tell.send(Work::Renew(Renewal { slot: slot.to_owned(), reply })).is_err() {
        return Refresh::Stop;
    }
    loop {
        match answer.recv_timeout(LOOK_EVERY) {
            Ok(refresh) => return refresh,
            Err(blocking::RecvTimeoutError::Timeout) if !stop.load(Ordering::Relaxed) => {}
            Err(_) => return Refresh::Stop,
        }
    }
}

impl Fetch for Source {
    fn open(&mut self, image: &Image, from: u64, etag: Option<&str>) -> Result<Opened, FetchError> {
        if image.source.starts_with('/') {
            return FileFetch.open(image, from, etag);
        }
        let opened = self.http()?.open(&image.slot, &image.source, from, etag)?;
        Ok(Opened { total: opened.total, etag: opened.etag, stream: Box::new(opened.stream) })
    }
}

/// Tells the loop, and waits for it where the rules say so.
struct Teller {
    tell: mpsc::UnboundedSender<Work>,
    wait: blocking::Receiver<()>,
    told: Option<Instant>,
    stop: Arc<AtomicBool>,
}

impl Teller {
    fn send(&self, work: Work) -> Result<(), Stopped> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Stopped);
        }
        self.tell.send(work).map_err(|_| Stopped)
    }
}

impl Observer for Teller {
    fn ready(&mut self) -> Result<(), Stopped> {
        self.send(Work::Event(Box::new(Event::Ready)))?;
        self.wait.recv().map_err(|_| Stopped)
    }

    fn progress(&mut self, progress: Progress) {
        if self.told.is_some_and(|t| t.elapsed() < TELL_EVERY) {
            return;
        }
        self.told = Some(Instant::now());
        let event = Event::Progress { done: progress.raw, total: progress.raw_total };
        let _ = self.send(Work::Event(Box::new(event)));
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), Stopped> {
        let (reply, saved) = blocking::channel();
        self.send(Work::Checkpoint(checkpoint.clone(), reply))?;
        loop {
            match saved.recv_timeout(LOOK_EVERY) {
                Ok(()) => return Ok(()),
                Err(blocking::RecvTimeoutError::Timeout) if !self.stop.load(Ordering::Relaxed) => {}
                Err(_) => return Err(Stopped),
            }
        }
    }
}
