/** For whoever takes a picture: the page says in itself when nothing is being asked. */

let asking = 0;
export async function noted<T>(work: Promise<T>): Promise<T> {
  asking += 1;
  document.body.dataset.settled = 'no';
  try {
    return await work;
  } finally {
    asking -= 1;
    setTimeout(() => {
      if (asking === 0) {
        document.body.dataset.settled = 'yes';
      }
    }, 300);
  }
}
