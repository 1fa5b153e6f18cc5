/** Marks the built command executable; tsc keeps no file modes. */
import { chmodSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

chmodSync(fileURLToPath(new URL('./main.js', import.meta.url)), 0o755)
