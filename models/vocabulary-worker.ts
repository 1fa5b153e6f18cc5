/** Body of the thread that packs the vocabulary of a tokenizer.json; megabytes of JSON would hold the event loop. */
import { readFileSync } from 'node:fs'
import { parentPort, workerData } from 'node:worker_threads'
import { packVocabulary } from '../abi/vocabulary.ts'

parentPort?.postMessage(packVocabulary(JSON.parse(readFileSync(workerData as string, 'utf8'))))
