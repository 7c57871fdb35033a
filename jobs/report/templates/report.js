// Timelines: a window seeks the video; the playing window is marked.
for (const timeline of document.querySelectorAll("[data-timeline]")) {
  const video = timeline.querySelector("video");
  const windows = [...timeline.querySelectorAll("li")];
  const head = timeline.querySelector(".head");
  const marks = [...timeline.querySelectorAll("[data-window]")];
  const mark = (index) => {
    windows.forEach((item, number) => item.classList.toggle("now", number === index));
    marks.forEach((item, number) => item.classList.toggle("now", number === index));
  };
  const seek = (index) => {
    mark(index);
    windows[index].scrollIntoView({ block: "nearest" });
    if (video) {
      video.currentTime = Number(windows[index].dataset.start) + 0.001;
      video.play().catch(() => {});
    }
  };
  windows.forEach((item, index) =>
    item.querySelector("button").addEventListener("click", () => seek(index)));
  marks.forEach((item, index) => item.addEventListener("click", () => seek(index)));
  if (video) {
    video.addEventListener("timeupdate", () => {
      const time = video.currentTime;
      mark(windows.findIndex((item) =>
        time >= Number(item.dataset.start) && time < Number(item.dataset.end)));
      const x = video.duration ? (1000 * time) / video.duration : 0;
      head.setAttribute("x1", x);
      head.setAttribute("x2", x);
    });
  }
}
