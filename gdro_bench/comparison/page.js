for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, i) => {  // a cell's first number (`below: -0.200 [...]`), but a method's name as it is
    const text = row.cells[i].textContent.trim(), number = i && text.replace(/,/g, '').match(/[-+]?[0-9]*[.]?[0-9]+/);
    return number ? parseFloat(number[0]) : text; };
  heads.forEach((head, i) => head.querySelector('button').addEventListener('click', () => {
    const down = head.getAttribute('aria-sort') === 'ascending';
    heads.forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const order = (a, b) => typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === 'number' ? -1 : 1;
    [...body.rows].sort((a, b) => (down ? -1 : 1) * order(key(a, i), key(b, i))).forEach(row => body.append(row));
  }));
}
const dialog = document.querySelector('dialog');
for (const button of document.querySelectorAll('.grid button')) button.addEventListener('click', () => {
  const image = button.querySelector('img');
  dialog.querySelector('img').src = image.src; dialog.querySelector('img').alt = image.alt;
  dialog.querySelector('p').textContent = image.alt; dialog.showModal();
});
dialog.addEventListener('click', () => dialog.close());
