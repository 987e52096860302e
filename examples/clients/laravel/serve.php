<?php

/** The product's web server: php -S 127.0.0.1:8000 serve.php */

use Illuminate\Contracts\Debug\ExceptionHandler;
use Illuminate\Http\Request;

$app = require __DIR__ . '/application.php';
$request = Request::capture();
$app->instance('request', $request);
try {
    $response = $app['router']->dispatch($request);
} catch (Throwable $error) {
    $handler = $app[ExceptionHandler::class];
    $handler->report($error);
    $response = $handler->render($request, $error);
}
$response->send();
