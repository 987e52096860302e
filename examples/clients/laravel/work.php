<?php

/** The product's queue worker, as php artisan queue:work starts it. */

use Illuminate\Queue\WorkerOptions;

$app = require __DIR__ . '/application.php';
$app['queue.worker']->daemon('database', 'default', new WorkerOptions(sleep: 0.1, maxTime: 120));
